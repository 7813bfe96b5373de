"""The promise of the package: however many ranks, the run follows the trajectory of one GPU."""

import json
from itertools import pairwise
from pathlib import Path

import pytest

from harness import launch
from trajectories import assert_follows


WORKER = Path(__file__).parents[1] / "workers" / "trajectory.py"
TOLERANCE = 1e-5

# kind, checkpointing: what one rank trains, and what 2 ranks must train the same.
KINDS = ["lora", "modules_to_save", "full"]
PLAIN = [f"kind={kind},checkpointing=true,trainer=plain" for kind in KINDS]
ON_TWO_RANKS = [
    *(f"kind={kind},checkpointing=true" for kind in KINDS),
    "kind=lora,checkpointing=true,accumulation=2,count=yes",
    "kind=lora,checkpointing=true,sync=overlapped",
    "kind=full,checkpointing=true,sync=overlapped,accumulation=2",
]

pytestmark = pytest.mark.gloo


def run(cases, num_processes, folder, model, env=None):
    """Runs the cases in one launch and returns the result of each by its text."""
    out = folder / f"{num_processes}.jsonl"
    launch(WORKER, model, out, *cases, num_processes=num_processes, env=env, timeout=280)
    results = {result["case"]: result for result in map(json.loads, out.read_text().splitlines())}
    assert list(results) == list(cases)
    for result in results.values():
        assert "error" not in result, result["at"]
    return results


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory, tiny_model):
    cases = [*PLAIN, "kind=lora,checkpointing=true"]
    return run(cases, 1, tmp_path_factory.mktemp("one"), tiny_model)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory, tiny_model):
    return run(ON_TWO_RANKS, 2, tmp_path_factory.mktemp("two"), tiny_model)


def reference(one_rank, kind):
    return one_rank[f"kind={kind},checkpointing=true,trainer=plain"]


def assert_same_trajectory(result, expected):
    assert_follows(result, expected, TOLERANCE)
    assert [entry["num_tokens"] for entry in result["logs"]] == [entry["num_tokens"] for entry in expected["logs"]]
    assert result["weights"] == pytest.approx(expected["weights"], abs=TOLERANCE)
    assert result["between_ranks"] == 0.0


def test_one_rank_is_the_plain_path_bit_for_bit(one_rank):
    ours, plain = one_rank["kind=lora,checkpointing=true"], reference(one_rank, "lora")
    assert [entry["loss"] for entry in ours["logs"]] == [entry["loss"] for entry in plain["logs"]]
    assert ours["weights"] == plain["weights"]
    assert ours["step_reports"] == []


def test_the_reference_learns(one_rank):
    losses = [entry["loss"] for entry in reference(one_rank, "full")["logs"]]
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize("case", ON_TWO_RANKS)
def test_two_ranks_follow_one(case, one_rank, two_ranks):
    assert_same_trajectory(two_ranks[case], reference(one_rank, two_ranks[case]["kind"]))


def test_four_ranks_follow_one(one_rank, tmp_path, tiny_model):
    results = run(["kind=lora,checkpointing=true"], 4, tmp_path, tiny_model)
    assert_same_trajectory(results["kind=lora,checkpointing=true"], reference(one_rank, "lora"))


def test_a_step_is_one_reduction_whatever_its_micro_batches(one_rank, two_ranks):
    steps = two_ranks["kind=lora,checkpointing=true,accumulation=2,count=yes"]["collectives"]
    assert steps == [{"c10d::allreduce_": 1}] * len(reference(one_rank, "lora")["logs"])


def test_every_rank_knows_what_every_rank_did(two_ranks):
    result = two_ranks["kind=lora,checkpointing=true"]
    logged = [0, *(entry["num_tokens"] for entry in result["logs"])]
    tokens = [[row[1] for row in rows] for rows in result["step_reports"]]
    assert [sum(ranks) for ranks in tokens] == [after - before for before, after in pairwise(logged)]
    assert all(first != second for first, second in tokens), "the lengths are uneven, so are the ranks"
