"""What a user's own code does with a trainer follows one rank on two, or is refused with a reason."""

from pathlib import Path

import pytest

from harness import ROOT, launch
from trajectories import Run, assert_trained_alike, read_runs


WORKER = ROOT / "tests" / "workers" / "users_code.py"
CASES = [
    "train",
    "evaluates_first",
    "predicts_first",
    "another_evaluates",
    "trains_twice",
    "unfreezes",
    "own_step",
    "own_backward",
    "r_drop",
    "fgm",
    "gathers",
    "streams",
    "stops_in_a_step",
    "logs_in_a_step",
    "counts_tokens",
]
PARTS = "parts_in_the_last_step"


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> dict[str, Run]:
    """Plain TRL on one rank, the reference."""
    out = tmp_path_factory.mktemp("one") / "out"
    launch(WORKER, tiny_model, out, *CASES, num_processes=1, timeout=280)
    return read_runs(out)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> dict[str, Run]:
    """The accelerated trainers on two ranks."""
    out = tmp_path_factory.mktemp("two") / "out"
    launch(WORKER, tiny_model, out, *CASES, PARTS, timeout=280)
    return read_runs(out)


@pytest.mark.gloo
@pytest.mark.parametrize("case", CASES)
def test_two_ranks_follow_one(case: str, one: dict[str, Run], two: dict[str, Run]) -> None:
    assert_trained_alike(two[case], one[case])
    assert two[case]["reports"] == len(one[case]["logs"]), "the step that was stopped in its middle counts nothing"


@pytest.mark.gloo
def test_ranks_that_part_in_the_last_step_are_told(two: dict[str, Run]) -> None:
    assert two[PARTS]["error"].startswith("GradientSyncError: The weights of rank 1 are not those of rank 0")


@pytest.mark.gloo
def test_a_users_gather_gets_the_rows_of_all_ranks(one: dict[str, Run], two: dict[str, Run]) -> None:
    assert two["gathers"]["rows"] == one["gathers"]["rows"] == 32


@pytest.mark.gloo
@pytest.mark.parametrize("case", ["train", "r_drop", "fgm", "gathers", "streams", "logs_in_a_step", "counts_tokens"])
def test_what_trl_logs_is_logged(case: str, one: dict[str, Run], two: dict[str, Run]) -> None:
    for ours, plain in zip(two[case]["logs"], one[case]["logs"], strict=True):
        assert ours.keys() == plain.keys() >= {"entropy", "mean_token_accuracy", "num_tokens"}
        assert ours["num_tokens"] == plain["num_tokens"]
        for name in ("entropy", "mean_token_accuracy"):
            assert ours[name] == pytest.approx(plain[name], rel=1e-5), name


@pytest.mark.long
def test_a_compiled_model_is_reduced_by_ddp_and_follows_one_rank(tmp_path: Path, tiny_model: Path) -> None:
    compiles = {"TORCHDYNAMO_DISABLE": "0"}
    launch(WORKER, tiny_model, tmp_path / "one", "compiles", num_processes=1, env=compiles, timeout=280)
    said = launch(WORKER, tiny_model, tmp_path / "two", "compiles", env=compiles, timeout=280).stderr
    one, two = (read_runs(tmp_path / out)["compiles"] for out in ("one", "two"))
    assert_trained_alike(two, one)
    assert two["reports"] == 0, "a compiled graph exchanges none"
    assert "gradients overlapped: torch.compile takes in DDP's reducer" in said


@pytest.mark.gloo
@pytest.mark.parametrize("case", ["counts_tokens", "gathers"])
def test_a_rank_that_fails_where_others_gather_shows_its_error_and_ends_the_job(
    case: str, tmp_path: Path, tiny_model: Path
) -> None:
    worker = WORKER.with_name("failing_trainers.py")
    text = launch(worker, tiny_model, tmp_path / "out", case, timeout=180, expect_failure=True).stderr
    assert "[rank1]: ValueError: only the last rank has this row" in text
