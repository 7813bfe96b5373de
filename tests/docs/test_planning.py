"""docs/planning.md: its commands are run, and print what the page shows."""

import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from estimate.recipes import write_config, write_rows
from harness import ON_CPU, ROOT


PLANNING = (ROOT / "docs" / "planning.md").read_text()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With the model and the rows of the page."""
    (tmp_path / "model").mkdir()
    write_config(tmp_path / "model")
    write_rows(tmp_path / "rows.jsonl", 20_000)
    return tmp_path


def run(command: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """A command of this package, as a shell would start it."""
    program, *arguments = shlex.split(command)
    assert program == "unsloth-accel"
    start = [sys.executable, "-c", "import sys; from unsloth_accel.cli.main import main; sys.exit(main())"]
    env = os.environ | ON_CPU | {"HF_HOME": str(folder / "home")}
    return subprocess.run(
        [*start, *arguments], cwd=folder, env=env, capture_output=True, text=True, timeout=280, check=False
    )


@pytest.mark.cpu
def test_the_plans_of_the_page_are_those_that_are_printed(folder: Path) -> None:
    shown = re.findall(r"```bash\n(unsloth-accel [^\n]*)\n```\n\n```text\n(.*?)```", PLANNING, re.DOTALL)
    assert len(shown) == 2
    for (command, output), code in zip(shown, (0, 1), strict=True):
        done = run(command, folder)
        assert (done.stdout, done.returncode) == (output, code), done.stderr


@pytest.mark.usefixtures("model_libraries")
def test_the_errors_of_the_page_are_those_of_the_measured_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    made = runpy.run_path(str(ROOT / "benchmarks" / "plan_accuracy.py"))
    assert made["table"]() in PLANNING
    assert made["compared_peaks"]() in PLANNING
