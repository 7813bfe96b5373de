"""What several ranks log and write of their steps is what they did, and one rank logs what TRL logs."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from harness import ROOT, launch
from trajectories import Run, read_runs
from unsloth_accel.metrics.window import METRICS


WORKER = ROOT / "tests" / "workers" / "step_metrics.py"
SLOW_SECONDS = 0.2  # of the last rank in each step
STEPS, LOGGING_STEPS = 4, 2
# Not on a CPU.
OF_A_GPU = {"peak_memory_gib", "mfu", "hfu"}
TIMED = ("_runtime", "_per_second")

Events = list[dict[str, Any]]

pytestmark = pytest.mark.gloo


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> dict[str, Run]:
    out = tmp_path_factory.mktemp("two") / "out"
    launch(WORKER, tiny_model, out, "trained", "asked", "stopped", timeout=280)
    runs = read_runs(out)
    for run in runs.values():
        assert "error" not in run, run["at"]
    return runs


def events(run: Run, kind: str = "") -> Events:
    """The lines of its file, of one kind or all."""
    parsed = [json.loads(line) for line in run["lines"]]
    return [event for event in parsed if kind in ("", event["event"])]


def training_logs(run: Run) -> Events:
    return [entry for entry in run["history"] if "loss" in entry]


def windows(steps: list[Any]) -> list[list[Any]]:
    return [steps[start : start + LOGGING_STEPS] for start in range(0, len(steps), LOGGING_STEPS)]


def test_the_names_are_in_the_log_of_training_and_nowhere_else(two: dict[str, Run]) -> None:
    first, *later = training_logs(two["trained"])
    assert set(METRICS) & first.keys() == set(METRICS) - OF_A_GPU
    assert later
    for entry in two["trained"]["history"]:
        assert "loss" in entry or not set(METRICS) & entry.keys(), "evaluation, and the summary at the end"


def test_the_tokens_are_those_that_each_rank_was_given(two: dict[str, Run]) -> None:
    run = two["trained"]
    steps = events(run, "step")
    assert [step["tokens"] for step in steps] == run["tokens"]
    assert [step["computed_tokens"] for step in steps] == run["computed"]
    assert len(steps) == STEPS
    assert all(first != second for first, second in run["tokens"]), "else the ranks could be mixed up"


def test_what_is_logged_follows_from_the_tokens_and_times(two: dict[str, Run]) -> None:
    run = two["trained"]
    tokens, computed = (windows(run[name]) for name in ("tokens", "computed"))
    of_steps = windows(events(run, "step"))
    for entry, given, padded, steps in zip(training_logs(run), tokens, computed, of_steps, strict=True):
        total, seconds = sum(map(sum, given)), sum(step["seconds"] for step in steps)
        assert entry["tokens_per_second"] == round(total / seconds)
        assert entry["tokens_per_second_per_gpu"] == round(total / seconds / 2)
        assert entry["padding_share"] == pytest.approx(1 - total / sum(map(sum, padded)))
        assert entry["imbalance"] == pytest.approx(sum(map(max, given)) / (total / 2))
        assert 0 < entry["padding_share"] < 1 < entry["imbalance"] < 2


def test_the_ranks_wait_for_the_late_one(two: dict[str, Run]) -> None:
    steps = events(two["trained"], "step")
    assert steps[0]["wait_seconds"] == [0, 0], "there is no step before"
    for step, following in pairwise(steps):
        punctual, late = following["wait_seconds"]
        # The late rank sleeps as long as the other waits, less what that needs more for its own work.
        assert 0 <= late < punctual < step["seconds"]
    shares = [entry["wait_share"] for entry in training_logs(two["trained"])]
    told = [(one["seconds"], sum(other["wait_seconds"]) / 2) for one, other in pairwise(steps)]
    expected = [told[:1], told[1:]]  # after two steps a rank has told of one, after four of three
    assert shares == pytest.approx([sum(wait for _, wait in part) / sum(s for s, _ in part) for part in expected])


def test_the_clock_stands_still_while_the_ranks_evaluate(two: dict[str, Run]) -> None:
    run = two["trained"]
    steps = events(run, "step")
    assert all(step["seconds"] >= SLOW_SECONDS for step in steps)
    passed = steps[-1]["time"] - run["began"]
    in_between = run["evaluated"] / 4  # one of four evaluations is between steps
    assert in_between >= 5 * SLOW_SECONDS
    assert sum(step["seconds"] for step in steps) + in_between <= passed + 0.01


def test_the_file_says_what_the_run_is_and_how_it_went(two: dict[str, Run]) -> None:
    run = two["trained"]
    assert run["files"].count("out.trained/metrics.jsonl") == 1
    start, *between, end = events(run)
    assert [event["event"] for event in between] == ["log", *["step", "step", "log", "log"] * 2, "log"]
    assert (start["event"], start["step"], end["event"], end["step"]) == ("start", 0, "end", STEPS)
    said = {"world_size": 2, "gpu": None, "global_batch": 8, "max_steps": STEPS, "gradient_sync": "deferred"}
    assert start.items() >= {**said, "plan": "keep", "trainer": "UnslothAcceleratedWatched"}.items()
    assert start["model"].endswith("tiny_model")
    assert start["versions"].keys() >= {"unsloth_accel", "unsloth", "torch", "transformers", "trl"}
    times = [event["time"] for event in events(run)]
    assert times == sorted(times)


def test_what_is_logged_is_in_the_file(two: dict[str, Run]) -> None:
    run = two["trained"]
    logged = [{**event["logs"], "step": event["step"]} for event in events(run, "log")]
    *in_training, afterwards = run["history"]
    assert logged == in_training
    assert "eval_loss" in afterwards, "nothing is written when training is over"


def test_logging_exchanges_nothing(two: dict[str, Run]) -> None:
    """The steps themselves: tests/trainers/test_trajectory.py counts one exchange each."""
    assert two["trained"]["exchanged"] == [[], []]


def test_an_event_of_the_users_is_written(two: dict[str, Run]) -> None:
    (plan,) = events(two["asked"], "plan")
    assert plan.items() >= {"step": 0, "plan": {"pieces": 1}}.items()
    assert events(two["trained"], "plan") == [], "it came when training was over"


def test_a_stop_has_its_reason(two: dict[str, Run]) -> None:
    (asked,) = events(two["asked"], "stop")
    assert (asked["step"], asked["reason"]) == (3, "should_training_stop on rank 1")
    assert events(two["trained"], "stop") == [], "that ended as it was told to"


def test_a_run_that_goes_on_begins_anew_in_the_same_file(two: dict[str, Run]) -> None:
    run = two["stopped"]
    assert run["code"] == 143
    lines = run["lines"]
    cut = lines.index('{"event": "step", "st')
    before, after = ([json.loads(line) for line in part] for part in (lines[:cut], lines[cut + 1 :]))
    stop, end = (next(event for event in before if event["event"] == kind) for kind in ("stop", "end"))
    assert (stop["step"], stop["reason"], end["step"]) == (2, "SIGTERM on rank 1", 2)
    assert (after[0]["event"], after[0]["step"]) == ("start", 2)
    assert [event["step"] for event in after if event["event"] == "step"] == [3, 4]


def test_one_rank_logs_what_trl_logs_and_writes_nothing(tmp_path: Path, tiny_model: Path) -> None:
    cases = ["one rank, TRL's", "one rank, ours"]
    launch(WORKER, tiny_model, tmp_path / "out", *cases, num_processes=1, timeout=280)
    runs = read_runs(tmp_path / "out")
    plain, ours = (
        [{k: v for k, v in entry.items() if not k.endswith(TIMED)} for entry in runs[case]["history"]]
        for case in cases
    )
    assert ours == plain
    assert runs[cases[1]]["files"] == []
