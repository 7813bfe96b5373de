"""`unsloth-accel report`, as a user types it."""

import subprocess
import sys
from pathlib import Path

import pytest

from report.events import BEGAN, start, step, write
from unsloth_accel.cli.main import main


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write(tmp_path / "run", [start(), step(1, BEGAN + 1), step(2, BEGAN + 2)])


def test_the_table_is_all_of_stdout_and_the_page_is_named_on_stderr(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(run)]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("|  | run |\n| --- | ---: |\n| Model |")
    assert said.err == f"{run / 'report.html'}; the charts as PNG in {run / 'report'}\n"
    assert (run / "report.html").exists()
    assert (run / "report" / "throughput.png").exists()


def test_two_runs_go_to_the_file_that_is_asked_for(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write(tmp_path / "other", [start(), step(1, BEGAN + 1)])
    page = tmp_path / "both.html"
    assert main(["report", str(run), "--compare", str(other), "--output", str(page)]) == 0
    assert capsys.readouterr().out.startswith("|  | run | other | ratio |\n")
    assert page.exists()
    assert (tmp_path / "both" / "throughput.png").exists()
    assert not (run / "report.html").exists()


@pytest.mark.parametrize("arguments", [["{run}/nowhere"], ["{run}", "--compare", "{run}/nowhere"]])
def test_a_folder_that_is_no_run_is_an_error_and_writes_nothing(
    run: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", *(argument.format(run=run) for argument in arguments)]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("unsloth-accel: error: `RUN` must be the output folder of a training run, got ")
    assert said.out == ""
    assert not (run / "report.html").exists()


def test_help_does_not_load_what_draws() -> None:
    code = """
import sys
from unsloth_accel.cli.main import main
try:
    main(["report", "--help"])
except SystemExit as done:
    print(done.code, "matplotlib" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.endswith("0 False\n")
