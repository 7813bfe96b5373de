"""The Python of the pages does what the pages say, on two ranks with real Unsloth.

docs/launching.md's needs a notebook or a script around it: tests/launch/test_launcher.py. docs/metrics.md's reads a
file that is cut off: tests/docs/test_metrics.py.
"""

from pathlib import Path
from typing import Any

import pytest

from harness import ROOT, launch, rank_results


WORKER = ROOT / "tests" / "workers" / "doc_blocks.py"
ELSEWHERE = {"launching", "metrics"}
PAGES = [
    page
    for page in sorted((ROOT / "docs").glob("*.md"))
    if "\n```python\n" in page.read_text() and page.stem not in ELSEWHERE
]

pytestmark = pytest.mark.gloo


@pytest.fixture(scope="module")
def ranks(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each page has left behind, on each rank."""
    out = tmp_path_factory.mktemp("blocks") / "out"
    launch(WORKER, tiny_model, out, *PAGES, timeout=150)
    return rank_results(out)


def test_every_page_with_python_was_run(ranks: list[dict[str, Any]]) -> None:
    for left in ranks:
        assert left.keys() == {"fault-tolerance", "step_plan", "trainers", "zero_code_change"}


def test_the_plugin_of_fault_tolerance_resumes(ranks: list[dict[str, Any]]) -> None:
    assert [left["fault-tolerance"]["resume"] for left in ranks] == ["auto", "auto"]


def test_the_trainer_of_the_step_plan_has_one(ranks: list[dict[str, Any]]) -> None:
    for left in ranks:
        assert left["step_plan"]["steps"] == 2
        assert "rows balanced" in left["step_plan"]["plan"]


def test_the_dpo_trainer_is_accelerated_and_trains(ranks: list[dict[str, Any]]) -> None:
    for left in ranks:
        assert left["trainers"]["steps"] > 0
        assert left["trainers"]["class"] == "UnslothAcceleratedDPOTrainer"


def test_the_hook_is_off_after_its_block(ranks: list[dict[str, Any]]) -> None:
    assert [left["zero_code_change"]["enabled"] for left in ranks] == [False, False]
