"""When a rank fails, differs or leaves, all hear of it, and no failed step passes for a good one."""

import time
from pathlib import Path
from typing import Any

import pytest

from harness import ROOT, launch, rank_results


WORKER = ROOT / "tests" / "workers" / "failing_ranks.py"

pytestmark = pytest.mark.gloo


@pytest.fixture(scope="module")
def survived(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank saw of the cases that all ranks live through."""
    out = tmp_path_factory.mktemp("survived") / "out"
    launch(WORKER, out, "different_models", "different_weights", "in_forward", timeout=120)
    return rank_results(out)


def die(case: str, folder: Path) -> str:
    """The error output of a case that ends the job, well before any time limit of a collective."""
    began = time.monotonic()
    text = launch(WORKER, folder / "out", case, timeout=120, expect_failure=True).stderr
    assert time.monotonic() - began < 110
    return text


def test_a_rank_that_fails_stops_the_others_in_the_same_step(survived: list[dict[str, Any]]) -> None:
    survivor, failed = (rank["in_forward"] for rank in survived)
    assert (failed["error"], failed["text"]) == ("ValueError", "no row for rank 1")
    assert survivor["error"] == "PeerError"
    assert survivor["text"].startswith("Rank 1 failed in this optimizer step:")
    assert 'raise ValueError(f"no row for rank {RANK}")' in survivor["text"]


def test_the_update_of_a_failed_step_cannot_be_saved(survived: list[dict[str, Any]]) -> None:
    survivor, failed = (rank["in_forward"] for rank in survived)
    assert failed["moved"] == 0.0
    assert failed["saved"]["error"] is None, "it holds the state of before the step"
    assert survivor["moved"] > 0.0, "else nothing is shown"
    for attempt in ("saved", "nested"):
        assert survivor[attempt]["error"] == "PeerError"
        assert "go back to the last checkpoint" in survivor[attempt]["text"]
    assert survivor["again"]["error"] is None, "other weights were loaded"


def test_an_error_that_ended_a_run_is_not_taken_for_one_of_the_next(survived: list[dict[str, Any]]) -> None:
    assert [rank["in_forward"]["published"] for rank in survived] == [[[1], []], [[], []]]


@pytest.mark.parametrize(
    ("case", "error"),
    [
        ("with_two_models", "ValueError: no row for rank 1"),
        ("after_the_reduction", "ValueError: no step for rank 1"),
        ("in_the_reduction", "torch.OutOfMemoryError: CUDA out of memory"),
    ],
)
def test_where_the_others_cannot_be_met_the_rank_leaves_with_its_own_error(
    case: str, error: str, tmp_path: Path
) -> None:
    text = die(case, tmp_path)
    assert f"[rank1]: {error}" in text
    if "[rank0]: Traceback" in text:  # the launcher did not end it before it noticed the lost connection
        assert "[rank0]: unsloth_accel.errors.PeerError: Rank 1 failed:" in text
        assert error in text.partition("[rank0]: unsloth_accel.errors.PeerError")[2]


def test_a_rank_with_other_weights_is_named_in_the_next_step(survived: list[dict[str, Any]]) -> None:
    for found in (rank["different_weights"] for rank in survived):
        assert found["error"] == "GradientSyncError"
        assert found["text"].startswith("The weights of rank 1 are not those of rank 0")


def test_a_layer_that_one_rank_alone_unfreezes_is_named(tmp_path: Path) -> None:
    text = die("different_parameters", tmp_path)
    assert "[rank1]: unsloth_accel.errors.ConfigurationError: This rank has changed `requires_grad` of 2.bias" in text
    assert "Rank 0 did not come to" in text


def test_ranks_that_train_other_parameters_are_refused(survived: list[dict[str, Any]]) -> None:
    """By DDP, when it is built."""
    for found in (rank["different_models"] for rank in survived):
        assert found["error"] == "RuntimeError"
        assert "DDP expects same model across all ranks" in found["text"]
