"""What one rank is asked to do, by a signal, a file or a callback, all ranks do at the same step."""

import json
from pathlib import Path
from typing import Any

import pytest

from harness import ROOT, launch
from trajectories import Run, assert_follows, assert_same_weights, read_runs
from unsloth_accel.recovery.newest import newest_complete


WORKER = ROOT / "tests" / "workers" / "agreed_stop.py"
CASES = [
    "undisturbed",
    "stops",
    "stops_rarely_logging",
    "all_stop",
    "all_stop_early",
    "saves",
    "saves_at_the_end",
    "evaluates",
    "logs",
    "random",
    "SIGTERM",
    "SIGUSR1",
    "SIGTERM_evaluating",
    "stop_file",
    "left_by_signal",  # the last one: the processes end
]

pytestmark = pytest.mark.gloo


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """The results of all cases, by name, and the folders of their checkpoints, OUT.<case>."""
    out = tmp_path_factory.mktemp("agreed") / "out"
    ended = launch(WORKER, tiny_model, out, *CASES, timeout=400, expect_failure=True)
    out.with_suffix(".stderr").write_text(ended.stderr)
    return out


@pytest.fixture(scope="module")
def runs(out: Path) -> dict[str, Run]:
    return read_runs(out)


def run_of(runs: dict[str, Run], case: str) -> Run:
    run = runs[case]
    assert "error" not in run, run.get("at")
    assert run["between_ranks"] == 0.0
    return run


def left(out: Path, case: str) -> list[Any]:
    """How each rank left: the exception's name, its code, and after which step."""
    return [json.loads(Path(f"{out}.{case}-{rank}").read_text()) for rank in (0, 1)]


def checkpoints(out: Path, case: str) -> list[str]:
    return sorted(path.name for path in Path(f"{out}.{case}").glob("checkpoint-*"))


@pytest.mark.parametrize(
    ("case", "step"),
    [
        ("stops", 3),  # asked for at the end of step 2, reported in step 3
        ("stops_rarely_logging", 3),  # asked for at the end of step 1, reported in step 2, which logs nothing
        ("all_stop", 2),  # as on one rank
        ("all_stop_early", 2),
        ("saves", 4),
        ("evaluates", 4),
    ],
)
def test_all_ranks_stop_at_the_same_step(case: str, step: int, runs: dict[str, Run]) -> None:
    assert run_of(runs, case)["steps"] == [step, step]


def test_all_ranks_save_what_one_wants_saved(out: Path, runs: dict[str, Run]) -> None:
    run = run_of(runs, "saves")
    assert run["saved"] == [[3], [3]]
    found = newest_complete(f"{out}.saves", with_optimizer=True)
    assert found is not None
    assert found.name == "checkpoint-3"
    assert checkpoints(out, "saves") == ["checkpoint-3"]


def test_what_one_rank_wishes_in_the_last_step_is_done_in_it(out: Path, runs: dict[str, Run]) -> None:
    assert run_of(runs, "saves_at_the_end")["saved"] == [[4], [4]]
    assert checkpoints(out, "saves_at_the_end") == ["checkpoint-4"]


def test_all_ranks_evaluate_what_one_wants_evaluated(runs: dict[str, Run]) -> None:
    assert run_of(runs, "evaluates")["evaluated"] == [[3], [3]]


def test_all_ranks_log_what_one_wants_logged(runs: dict[str, Run]) -> None:
    # Asked for at the end of step 2, reported in step 3, and that logs nothing by itself.
    assert len(run_of(runs, "logs")["logs"]) == 1


def test_ranks_that_wish_at_random_do_the_same(runs: dict[str, Run]) -> None:
    run = run_of(runs, "random")
    assert run["steps"][0] == run["steps"][1]  # fewer than 40, since some epochs were ended
    for done in ("saved", "evaluated"):
        first, second = run[done]
        assert first == second
        assert len(first) > 2


@pytest.mark.parametrize("case", ["saves", "evaluates", "saves_at_the_end"])
def test_a_run_that_goes_on_is_the_undisturbed_one(case: str, runs: dict[str, Run]) -> None:
    assert_follows(runs[case], runs["undisturbed"])
    assert_same_weights(runs[case], runs["undisturbed"])


@pytest.mark.parametrize(
    ("case", "step", "code"),
    [("SIGTERM", 2, 143), ("SIGUSR1", 3, 138), ("SIGTERM_evaluating", 2, 143), ("stop_file", 3, 0)],
)
def test_a_signal_to_one_rank_or_the_stop_file_saves_and_stops_all(
    case: str, step: int, code: int, out: Path, runs: dict[str, Run]
) -> None:
    run = run_of(runs, case)
    assert run["stopped_steps"] == [step, step]
    assert run["stopped_saved"] == [[step], [step]]
    assert run["stopped_evaluated"] == [[], []]
    assert run["codes"] == [code, code]
    assert run["restored"] == [True, True]
    found = newest_complete(f"{out}.{case}", with_optimizer=True)
    assert found is not None
    assert found.name == f"checkpoint-{step}"


@pytest.mark.parametrize("case", ["SIGTERM", "SIGUSR1", "SIGTERM_evaluating", "stop_file"])
def test_the_resumed_run_is_the_undisturbed_one(case: str, runs: dict[str, Run]) -> None:
    assert run_of(runs, case)["steps"] == [4, 4]
    assert_same_weights(runs[case], runs["undisturbed"])


def test_the_exit_code_is_that_of_the_signal(out: Path) -> None:
    said = out.with_suffix(".stderr").read_text()
    assert "exitcode  : 143" in said
    assert "SIGTERM: all ranks save step 2 and leave with exit code 143" in said
    assert left(out, "left_by_signal") == [["SystemExit", 143, 2]] * 2


def test_the_launcher_forwards_a_signal_and_a_scheduler_may_send_it_to_the_ranks_as_well(
    tmp_path: Path, tiny_model: Path
) -> None:
    out, handled = tmp_path / "out", {"PET_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"}
    launch(WORKER, tiny_model, out, "launcher_signalled", timeout=180, env=handled, expect_failure=True)
    assert left(out, "launcher_signalled") == [["SystemExit", 138, 2]] * 2
    assert checkpoints(out, "launcher_signalled") == ["checkpoint-2"]


def test_a_second_signal_goes_to_the_handler_from_before(tmp_path: Path, tiny_model: Path) -> None:
    said = launch(WORKER, tiny_model, tmp_path / "out", "signalled_twice", timeout=180, expect_failure=True).stderr
    assert "exitcode  : 2 " in said
    assert checkpoints(tmp_path / "out", "signalled_twice") == []


@pytest.mark.long
def test_after_the_stop_file_the_launcher_restarts_nobody_and_the_file_is_gone(
    tmp_path: Path, tiny_model: Path
) -> None:
    out, folder = tmp_path / "out", tmp_path / "out.left_by_stop_file"
    folder.mkdir()
    (folder / "stop").touch()  # of a run before, which stops nothing
    said = launch(WORKER, tiny_model, out, "left_by_stop_file", options=["--max_restarts", "1"], timeout=180).stderr
    assert f"{folder / 'stop'} was there before training began: it is removed" in said
    assert "stop_file: all ranks save step 2 and leave with exit code 0" in said
    assert left(out, "left_by_stop_file") == [["SystemExit", 0, 2]] * 2
    assert checkpoints(out, "left_by_stop_file") == ["checkpoint-2"]
    assert not (folder / "stop").exists()
