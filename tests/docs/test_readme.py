"""The README's figures are those of the result files."""

import runpy
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "README.md").read_text()


def test_the_table_of_speed_is_that_of_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    assert runpy.run_path(str(ROOT / "benchmarks" / "readme.py"))["speed"]() in PAGE


def test_what_is_faster_on_torch_2_11_alone_is_no_figure_here() -> None:
    """Both sides launch attention once per layer, and the page says so."""
    assert "627" not in PAGE
    assert "torch >= 2.12" in PAGE


def test_the_first_screen_has_a_picture_two_commands_and_a_diff() -> None:
    head, _, _ = PAGE.partition("### How fast")
    assert len(head.splitlines()) < 35
    for part in ("![", "make demo", "make test", "```diff", "accelerate launch --config_file"):
        assert part in head
