"""Some of what `make faults` tries, and random draws of it: no fault hangs the run, and none is seen in its result."""

import os
import random
from pathlib import Path
from typing import Any

import pytest

from recovery.faults import PHASES, Campaign, Fault, damaged, exit_codes, keep
from trajectories import BF16, FLOAT32


# A rank that is stopped or loops is found early, and the launcher does not wait long for it.
IMPATIENT = {"UNSLOTH_ACCEL_STALL_TIMEOUT": "15", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "5"}
# A rank may take long to evaluate and save, so there a loop is not seen.
SEEN = [(kind, phase) for kind in ("kill", "SIGTERM", "SIGSTOP") for phase in PHASES if phase != "merge"]
SEEN += [("loop", "forward"), ("loop", "optimizer step")]


def assert_undisturbed(row: dict[str, Any], from_steps: set[int]) -> None:
    assert "error" not in row, row
    assert row["from_step"] in from_steps, row
    assert row["difference"] <= FLOAT32, row


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    return Campaign(2, tmp_path_factory.mktemp("faults"), jobs=len(os.sched_getaffinity(0)))


@pytest.mark.long
def test_a_run_that_the_launcher_restarts_after_a_kill_goes_on_by_itself(campaign: Campaign) -> None:
    (row,) = campaign.inject_all([Fault("kill", "reduction", 1, ("--max_restarts", "1"))])
    assert row["exit_codes"] == [0, 0]
    assert_undisturbed(row, {2})


@pytest.mark.long
@pytest.mark.soak
def test_no_fault_of_many_at_random_hangs_or_shows(campaign: Campaign, request: pytest.FixtureRequest) -> None:
    number = request.config.getoption("--draws") // 6  # a draw takes half a minute
    draws = random.Random(number)
    chosen = [Fault(*draws.choice(SEEN), draws.choice([0, 1])) for _ in range(number)]
    for row in campaign.inject_all(chosen, IMPATIENT):
        assert_undisturbed(row, {2, 4, 5, 6})


@pytest.mark.timeout(580)
@pytest.mark.parametrize("ranks", [pytest.param(n, marks=pytest.mark.multigpu(gpus=n)) for n in (2, 4)])
def test_on_gpus_a_run_goes_on_after_a_signal_a_kill_and_a_rank_that_hangs(
    ranks: int, tmp_path: Path, result_folder: Path
) -> None:
    """Where the others wait in a kernel of NCCL, which no exception reaches. After SIGTERM all save step 4."""
    campaign = Campaign(ranks, tmp_path, "ddp", jobs=4)
    last = ranks - 1
    chosen = [Fault("kill", "reduction", last), Fault("kill", "forward", 0, ("--max_restarts", "1"))]
    chosen += [Fault("SIGSTOP", "reduction", last), Fault("SIGTERM", "forward", last)]
    moved = sum(rate * min(norm, 1.0) for rate, norm in campaign.undisturbed["moved"])
    rows = campaign.inject_all(chosen, IMPATIENT)
    keep(rows, str(tmp_path), result_folder / "faults_gpu.jsonl")
    for row in rows:
        assert "error" not in row, row
        assert row["from_step"] == (4 if row["fault"].startswith("SIGTERM") else 2), row
        assert row["difference"] <= BF16 * moved, row
        assert row["seconds"] < 120, row


def test_the_exit_codes_are_read_from_what_the_launcher_says() -> None:
    told = "rank      : 1 (local_rank: 1)\n  exitcode  : -9 (pid: 12289)\n"
    assert exit_codes(told, 2) == [0, -9]


def test_every_file_of_the_newest_checkpoint_is_damaged_in_a_copy(tmp_path: Path) -> None:
    for step in (2, 10):
        folder = tmp_path / "whole" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "weights").write_bytes(b"abc")
    copies = dict(damaged(tmp_path / "whole", tmp_path))
    assert [(name, (run / "checkpoint-10" / "weights").read_bytes()) for name, run in copies.items()] == [
        ("weights cut", b"ab"),
        ("weights flipped", b"acc"),
    ]
    assert all((run / "checkpoint-2" / "weights").read_bytes() == b"abc" for run in copies.values())
