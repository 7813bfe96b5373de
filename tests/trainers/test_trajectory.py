"""The promise of the package: however many ranks, the run follows the trajectory of one GPU."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from harness import launch
from trajectories import Run, assert_follows, assert_same_weights, read_runs


WORKER = Path(__file__).parents[1] / "workers" / "trajectory.py"
KINDS = ["lora", "modules_to_save", "full"]
ADAMW = "kind=lora,checkpointing=true"
# Padded, as all rows are that Unsloth's CPU backend trains.
PUT_TOGETHER = "kind=lora,checkpointing=true,optim=sgd,accumulation=2,plan=auto"
ON_TWO_RANKS = [
    ADAMW,
    *(f"kind={kind},checkpointing=true,optim=sgd" for kind in KINDS),
    "kind=lora,checkpointing=true,optim=sgd,accumulation=2,count=yes",
    PUT_TOGETHER,
    "kind=lora,checkpointing=true,optim=sgd,sync=overlapped",
    "kind=full,checkpointing=true,optim=sgd,sync=overlapped,accumulation=2",
]


def train(cases: Sequence[str], num_processes: int, folder: Path, model: Path) -> dict[str, Run]:
    """Runs the cases in one launch and returns the result of each by its text."""
    out = folder / f"{num_processes}.jsonl"
    launch(WORKER, model, out, *cases, num_processes=num_processes, timeout=280)
    runs = read_runs(out)
    assert list(runs) == list(cases)
    for case, run in runs.items():
        assert "error" not in run, f"{case}: {run['at']}"
    return runs


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> dict[str, Run]:
    plain = [f"{ADAMW},trainer=plain", *(f"kind={kind},checkpointing=true,optim=sgd,trainer=plain" for kind in KINDS)]
    return train([ADAMW, *plain], 1, tmp_path_factory.mktemp("one"), tiny_model)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> dict[str, Run]:
    return train(ON_TWO_RANKS, 2, tmp_path_factory.mktemp("two"), tiny_model)


def reference(one_rank: dict[str, Run], run: Run) -> Run:
    """What one rank trained without us, with the same optimizer."""
    return one_rank[f"kind={run['kind']},checkpointing=true{',optim=sgd' * (run['optim'] == 'sgd')},trainer=plain"]


def assert_same_trajectory(run: Run, expected: Run) -> None:
    assert_follows(run, expected)
    assert [entry["num_tokens"] for entry in run["logs"]] == [entry["num_tokens"] for entry in expected["logs"]]
    assert run["between_ranks"] == 0.0
    if run["optim"] == "sgd":
        assert_same_weights(run, expected)


@pytest.mark.gloo
def test_one_rank_is_the_plain_path_bit_for_bit(one_rank: dict[str, Run]) -> None:
    ours, plain = one_rank[ADAMW], one_rank[f"{ADAMW},trainer=plain"]
    assert [entry["loss"] for entry in ours["logs"]] == [entry["loss"] for entry in plain["logs"]]
    assert ours["weights"] == plain["weights"]
    assert ours["step_reports"] == []


@pytest.mark.gloo
def test_the_references_learn(one_rank: dict[str, Run]) -> None:
    for case, run in one_rank.items():
        losses = [entry["loss"] for entry in run["logs"]]
        assert losses[-1] < losses[0] - 0.05, case


@pytest.mark.gloo
@pytest.mark.parametrize("case", ON_TWO_RANKS)
def test_two_ranks_follow_one(case: str, one_rank: dict[str, Run], two_ranks: dict[str, Run]) -> None:
    assert_same_trajectory(two_ranks[case], reference(one_rank, two_ranks[case]))


@pytest.mark.gloo
def test_the_micro_batches_of_a_plan_are_one_forward(two_ranks: dict[str, Run]) -> None:
    run = two_ranks[PUT_TOGETHER]
    assert run["forwards"] == len(run["logs"])
    assert two_ranks[ADAMW]["forwards"] == len(two_ranks[ADAMW]["logs"])


@pytest.mark.long
def test_four_ranks_follow_one(one_rank: dict[str, Run], tmp_path: Path, tiny_model: Path) -> None:
    (run,) = train(["kind=lora,checkpointing=true,optim=sgd"], 4, tmp_path, tiny_model).values()
    assert_same_trajectory(run, reference(one_rank, run))


@pytest.mark.gloo
def test_a_step_is_one_exchange_whatever_its_micro_batches(two_ranks: dict[str, Run]) -> None:
    run = two_ranks["kind=lora,checkpointing=true,optim=sgd,accumulation=2,count=yes"]
    assert run["collectives"] == [{"c10d::allreduce_": 2}] * len(run["logs"]), "all gradients, and the reports"


@pytest.mark.gloo
def test_every_rank_knows_what_every_rank_did(two_ranks: dict[str, Run]) -> None:
    run = two_ranks[ADAMW]
    logged = [0, *(entry["num_tokens"] for entry in run["logs"])]
    tokens = [[report["values"]["tokens"] for report in step] for step in run["step_reports"]]
    assert [sum(ranks) for ranks in tokens] == [after - before for before, after in pairwise(logged)]
    assert all(first != second for first, second in tokens), "the lengths are uneven, so are the ranks"
