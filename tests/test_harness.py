"""The tests' own launcher: a failure shows the failing rank, and nothing waits for ever."""

import psutil
import pytest

from harness import ROOT, launch


MISBEHAVE = ROOT / "tests" / "workers" / "misbehave.py"


def nothing_runs_on() -> bool:
    commands = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    return not any(str(MISBEHAVE) in command for command in commands)


@pytest.mark.gloo
def test_a_failing_rank_is_shown_with_its_traceback() -> None:
    with pytest.raises(AssertionError, match="exit code 1") as caught:
        launch(MISBEHAVE, "raise")
    blamed = str(caught.value).split("rank 1, which failed first: stderr")[1]
    assert "in raise_on_purpose" in blamed
    assert "RuntimeError: rank 1 fails on purpose" in blamed
    assert nothing_runs_on()


@pytest.mark.gloo
def test_hanging_ranks_are_ended_and_show_their_stacks() -> None:
    for timeout in (10, 40, 160):  # a busy machine needs longer until its ranks hang
        with pytest.raises(AssertionError, match=f"not done after {timeout} s") as caught:
            launch(MISBEHAVE, "hang", timeout=timeout)
        assert nothing_runs_on()
        if str(caught.value).count("in hang_on_purpose") == 2:
            break
    for rank in ("rank 0", "rank 1"):
        stack = str(caught.value).split(f"--- {rank}: stderr")[1].split("---")[0]
        assert "in hang_on_purpose" in stack


@pytest.mark.gloo
def test_a_success_is_a_failure_where_one_was_expected() -> None:
    with pytest.raises(AssertionError, match="exit code 0"):
        launch("this", num_processes=1, expect_failure=True)
