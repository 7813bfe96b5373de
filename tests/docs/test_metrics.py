"""docs/metrics.md names every metric and event, and its code reads the file."""

import re
from pathlib import Path

import pytest

from harness import ROOT
from pages import code_blocks
from unsloth_accel.metrics.window import METRICS, StepFacts


PAGE = (ROOT / "docs" / "metrics.md").read_text()


def first_cells(heading: str) -> list[str]:
    """The names in the first column of the tables of a section."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"^\| `(\w+)`", section, re.MULTILINE)


def test_every_metric_is_explained_and_no_other() -> None:
    assert first_cells("In the log") == list(METRICS)


def test_every_field_of_a_step_is_explained() -> None:
    (row,) = [line for line in PAGE.splitlines() if line.startswith("| `step` |")]
    assert set(re.findall(r"`(\w+)`", row)) - {"step"} == set(StepFacts.__annotations__)


def test_the_code_reads_a_file_of_which_a_line_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = code_blocks(PAGE, "python")
    (tmp_path / "out").mkdir()
    lines = ['{"event": "start", "step": 0}', '{"event": "step", "step": 1, "seconds": 0.5}', '{"event": "st']
    (tmp_path / "out" / "metrics.jsonl").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    found: dict[str, object] = {}
    exec(code, found)
    assert found["seconds"] == [0.5]
    assert capsys.readouterr().out == 'cut off by a kill: {"event": "st\n'
