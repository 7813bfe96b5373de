"""docs/report.md: its commands are run, and its pictures are there."""

import re
import shlex
from pathlib import Path

import pytest

from harness import ROOT
from pages import code_blocks
from report.events import long_run, other_run
from unsloth_accel.cli.main import main
from unsloth_accel.report.charts import KINDS, Kind


PAGE = (ROOT / "docs" / "report.md").read_text(encoding="utf-8")
COMMANDS = [line for block in code_blocks(PAGE, "bash") for line in block.splitlines()]


def test_the_commands_write_what_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All but `pip install`, whose extra must be one of setup.cfg."""
    install, first, second = COMMANDS
    (extra,) = re.findall(r"unsloth-accel\[(\w+)\]", install)
    assert f"\n{extra} =\n" in (ROOT / "setup.cfg").read_text()
    long_run(tmp_path / "outputs")
    other_run(tmp_path / "plain")
    monkeypatch.chdir(tmp_path)

    assert main(shlex.split(first)[1:]) == 0
    assert (tmp_path / "outputs" / "report.html").exists()
    assert len(list((tmp_path / "outputs" / "report").glob("*.png"))) == len(KINDS) + 1
    capsys.readouterr()

    second, _, table = second.partition(" > ")
    assert table
    assert main(shlex.split(second)[1:]) == 0
    assert (tmp_path / "both.html").exists()
    assert capsys.readouterr().out.startswith("|  | outputs | plain | ratio |\n")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_chart_is_explained(kind: Kind) -> None:
    title = {"tokens": "Tokens, waiting", "waiting": "Tokens, waiting"}.get(kind.name, kind.title)
    assert f"\n| {title} | " in PAGE


def test_the_pictures_are_there_and_small() -> None:
    pictures = re.findall(r'(?:src|srcset)="([^"]+)"', PAGE)
    assert len(pictures) == 2
    for picture in pictures:
        assert 10_000 < (ROOT / "docs" / picture).stat().st_size < 150_000
