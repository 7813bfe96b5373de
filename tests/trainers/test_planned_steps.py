"""However a step's rows are computed, the run is that of one rank with the user's micro-batches."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness import ON_CPU, ROOT, launch
from trajectories import Run, assert_trained_alike, read_runs
from unsloth_accel import ConfigurationError, StepPlan, UnslothAcceleratorPlugin


WORKER = ROOT / "tests" / "workers" / "planned_steps.py"
KEEP, KEEP_PACKED = "plan=keep", "plan=keep,packing=yes"
# By case: the forwards of a rank in each of 3 steps of 4 micro-batches, and the layers not recomputed, of 2.
PADDING_FREE = {
    KEEP: (4, 0),
    "pieces=1": (1, 0),
    "pieces=2": (2, 0),
    "pieces=3": (3, 0),
    "pieces=5": (5, 0),  # more than there are micro-batches: cut between documents
    "pieces=1,balance=no": (1, 0),
    "pieces=1,layers=all": (1, 2),
    "pieces=2,layers=1,balance=no": (2, 1),
    "layers=all,accumulation=1": (1, 2),
}
# On the CPU a plan is chosen without measuring.
PADDING_FREE |= {"plan=auto": (1, 2)}
# Padded micro-batches are filled up to the longest, or, if there are not enough of them, cut between rows.
PADDED = {
    "padding_free=no,pieces=1": (1, 0),
    "padding_free=no,pieces=3": (3, 0),
    "padding_free=no,pieces=6": (6, 0),
    "padding_free=no,pieces=2,layers=1,balance=no": (2, 1),
    "padding_free=no,layers=1": (4, 1),
    "padding_free=no,plan=auto": (1, 2),
}
# Where memory is measured: the forwards of each step, by what the smaller card holds, in tokens of which all layers
# are kept. The first step is as asked for, the second is measured; a rank has about 440 tokens in a step.
SEARCHED = {
    "plan=auto,fits=800": [4, 4, 1],
    "plan=auto,fits=300,max_length=160": [4, 4, 1],
    "padding_free=no,plan=auto,fits=2000": [4, 4, 4],  # in a short run as they are
}
TUNED_PADDED = "padding_free=no,plan=auto,fits=2000,max_length=160,steps=32"
TUNED, KEEP_LONG = "plan=auto,fits=300,max_length=160,steps=32", "plan=keep,max_length=160,steps=32"
# The last rank runs out of memory where a batch has more tokens than that. Rank 0, whose forwards these are, is told.
OUT_OF_MEMORY = {
    "pieces=1,oom=forward,limit=400": 1,
    "pieces=1,oom=loss,limit=400": 1,
    "pieces=1,oom=backward,limit=400": 1,
    "pieces=1,oom=backward,limit=150": 1,
    "plan=auto,oom=backward,limit=400": 1,
    "padding_free=no,pieces=1,oom=backward,limit=600": 1,
}
# Two rows are too many where one has more than 80 tokens.
PADDED_OUT_OF_MEMORY = "padding_free=no,layers=0,oom=backward,limit=160"
# What cannot be cut is computed again without kept layers, also where one is kept to measure it.
NOT_CUT = "padding_free=no,positions=yes,oom=backward,limit=160,kept_layers_only=yes"
UNCUT = [f"{NOT_CUT},layers=all", f"{NOT_CUT},plan=auto,fits=2000"]
KEEP_COMPLETION, COMPLETION = "plan=keep,completion=yes", "pieces=1,completion=yes"
# Where what a row adds depends on the rows beside it, or on the rank that has it.
BY_LENGTH, KEEP_BY_LENGTH = "pieces=1,rope=dynamic", "plan=keep,rope=dynamic"
NOISY = "pieces=1,neftune_noise_alpha=5"
PADDED_BEHIND = "pieces=1,multiple=8"
BY_RANK, KEEP_BY_RANK = "pieces=1,average=no", "plan=keep,average=no"
KEEP_SMOOTHED, SMOOTHED = "plan=keep,label_smoothing_factor=0.1", "pieces=1,label_smoothing_factor=0.1"
PACKED = ["packing=yes,pieces=1", "packing=yes,pieces=1,layers=all"]
# The package, and whatever else this Python was told to find.
PATHS = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
TOO_LARGE = "pieces=1,oom=forward,limit=60"
ALONE = "plan=auto,fits=2000"
RAISED = "pieces=1,oom=forward,limit=400,on_oom=raise"


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> dict[str, Run]:
    """Without a launcher: under it Accelerate wraps the model of one rank in DDP, which this checkpointing breaks."""
    folder = tmp_path_factory.mktemp("one")
    cases = [KEEP, KEEP_PACKED, "pieces=1,layers=1", KEEP_LONG, KEEP_COMPLETION, KEEP_SMOOTHED, ALONE]
    environment = {
        **os.environ,
        **ON_CPU,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": PATHS,
        "UNSLOTH_DISABLE_STATISTICS": "1",
    }
    command = [sys.executable, str(WORKER), str(tiny_model), str(folder / "out"), *cases]
    subprocess.run(command, env=environment, cwd=folder, check=True, timeout=560)
    return read_runs(folder / "out")


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> dict[str, Run]:
    out = tmp_path_factory.mktemp("two") / "out"
    cases = [
        *PADDING_FREE,
        *PADDED,
        *PACKED,
        COMPLETION,
        *SEARCHED,
        TUNED,
        *OUT_OF_MEMORY,
        PADDED_OUT_OF_MEMORY,
        *UNCUT,
        *(BY_LENGTH, KEEP_BY_LENGTH, NOISY, PADDED_BEHIND, BY_RANK, KEEP_BY_RANK, SMOOTHED),
        RAISED,
        TOO_LARGE,
    ]
    launch(WORKER, tiny_model, out, *cases, timeout=560)
    return read_runs(out)


@pytest.mark.gloo
@pytest.mark.parametrize("case", [*PADDING_FREE, *PADDED])
def test_two_ranks_follow_one(case: str, one_rank: dict[str, Run], two_ranks: dict[str, Run]) -> None:
    run = two_ranks[case]
    assert_trained_alike(run, one_rank[KEEP])
    forwards, kept = {**PADDING_FREE, **PADDED}[case]
    assert run["forwards"] == [forwards] * 3
    assert run["reductions"] == 3, "one a step, in however many pieces"
    assert (run["kept"], run["checkpointed afterwards"]) == (kept, 2)


@pytest.mark.gloo
@pytest.mark.parametrize("case", PACKED)
def test_packed_rows_of_a_short_last_step_follow_one_rank(
    case: str, one_rank: dict[str, Run], two_ranks: dict[str, Run]
) -> None:
    assert_trained_alike(two_ranks[case], one_rank[KEEP_PACKED])


@pytest.mark.gloo
def test_prompts_stay_out_of_the_loss(one_rank: dict[str, Run], two_ranks: dict[str, Run]) -> None:
    assert_trained_alike(two_ranks[COMPLETION], one_rank[KEEP_COMPLETION])
    assert two_ranks[COMPLETION]["forwards"] == [1, 1, 1]


@pytest.mark.gloo
def test_rows_that_depend_on_those_beside_them_are_computed_as_given(two_ranks: dict[str, Run]) -> None:
    assert all(two_ranks[case]["forwards"] == [4] * 3 for case in (BY_LENGTH, NOISY, PADDED_BEHIND))
    assert_trained_alike(two_ranks[BY_LENGTH], two_ranks[KEEP_BY_LENGTH])
    assert two_ranks[NOISY]["tokens"] == two_ranks[KEEP]["tokens"], "each rank has the rows that it has by number"


@pytest.mark.gloo
def test_rows_that_count_by_the_tokens_of_their_rank_stay_there(two_ranks: dict[str, Run]) -> None:
    assert two_ranks[BY_RANK]["forwards"] == [1] * 3
    assert_trained_alike(two_ranks[BY_RANK], two_ranks[KEEP_BY_RANK])


@pytest.mark.gloo
def test_a_smoothed_loss_is_a_sum_too(one_rank: dict[str, Run], two_ranks: dict[str, Run]) -> None:
    assert two_ranks[SMOOTHED]["forwards"] == [1] * 3
    assert_trained_alike(two_ranks[SMOOTHED], one_rank[KEEP_SMOOTHED])


@pytest.mark.gloo
@pytest.mark.parametrize("case", OUT_OF_MEMORY)
def test_a_rank_that_runs_out_of_memory_computes_smaller_pieces_and_all_follow(
    case: str, one_rank: dict[str, Run], two_ranks: dict[str, Run]
) -> None:
    run = two_ranks[case]
    assert_trained_alike(run, one_rank[KEEP])
    first, *later = run["forwards"]
    assert first == OUT_OF_MEMORY[case], "this rank had the memory"
    assert later[0] == 2, "from the next step on all ranks make more pieces"


@pytest.mark.long
def test_three_ranks_follow_a_fourth_that_runs_out_of_memory(
    one_rank: dict[str, Run], tmp_path: Path, tiny_model: Path
) -> None:
    cases = [f"pieces=1,oom={phase},limit=150" for phase in ("forward", "loss", "backward")]
    launch(WORKER, tiny_model, tmp_path / "out", *cases, num_processes=4, timeout=560)
    for case, run in read_runs(tmp_path / "out").items():
        assert_trained_alike(run, one_rank[KEEP])
        assert run["forwards"][0] == 1 < run["forwards"][1], f"{case}: from the next step on all make more pieces"


@pytest.mark.gloo
def test_padded_rows_that_do_not_fit_together_are_computed_apart(
    one_rank: dict[str, Run], two_ranks: dict[str, Run]
) -> None:
    run = two_ranks[PADDED_OUT_OF_MEMORY]
    assert_trained_alike(run, one_rank[KEEP])
    assert run["forwards"][0] == 4, "this rank had the memory"
    assert run["forwards"][-1] == 8, "one row each"


@pytest.mark.gloo
@pytest.mark.parametrize("case", UNCUT)
def test_batches_that_cannot_be_cut_are_computed_again_with_every_layer_recomputed(
    case: str, one_rank: dict[str, Run], two_ranks: dict[str, Run]
) -> None:
    run = two_ranks[case]
    assert_trained_alike(run, one_rank[KEEP])
    assert run["forwards"] == [4] * 3, "no more on this rank, which had the memory"
    assert run["kept"] == 0, "from the next step on no rank keeps any"
    assert (run["plan"]["plan"]["pieces"], run["plan"]["plan"]["layers_kept"]) == (None, 0)
    assert run["plan"]["reason"] == "rank 1 ran out of memory"


@pytest.mark.gloo
@pytest.mark.parametrize("case", SEARCHED)
def test_a_plan_is_made_from_what_is_measured(case: str, one_rank: dict[str, Run], two_ranks: dict[str, Run]) -> None:
    run = two_ranks[case]
    assert_trained_alike(run, one_rank[KEEP])
    assert run["forwards"] == SEARCHED[case]
    assert run["plan"]["reason"].startswith("the only one that fits" if "800" in case else "the rule's choice")


@pytest.mark.gloo
def test_a_plan_is_tuned_while_the_run_goes_on_as_one_rank_would(
    one_rank: dict[str, Run], two_ranks: dict[str, Run]
) -> None:
    run = two_ranks[TUNED]
    assert_trained_alike(run, one_rank[KEEP_LONG])
    assert run["forwards"][:11] == [4, 4, 1, 1, 1, 2, 2, 2, 4, 4, 4], "each candidate for three steps"
    plan = run["plan"]
    assert [(one["pieces"], one["layers_kept"]) for one in plan["candidates"]] == [(1, 0), (2, 1), (4, 2)]
    assert all(one["microseconds"] > 0 for one in plan["candidates"])
    assert set(run["forwards"][12:]) == {plan["plan"]["pieces"]}


@pytest.mark.long
def test_padded_micro_batches_are_tried_as_they_are_and_put_together(
    one_rank: dict[str, Run], tmp_path: Path, tiny_model: Path
) -> None:
    launch(WORKER, tiny_model, tmp_path / "out", TUNED_PADDED, timeout=280)
    (run,) = read_runs(tmp_path / "out").values()
    assert_trained_alike(run, one_rank[KEEP_LONG])
    assert run["forwards"][:11] == [4, 4, 4, 4, 4, 1, 1, 1, 2, 2, 2], "as they are first"
    plan = run["plan"]
    assert [(one["pieces"], one["layers_kept"]) for one in plan["candidates"]] == [(1, 2), (2, 2), (4, 2)]
    assert set(run["forwards"][12:]) == {plan["plan"]["pieces"]}


@pytest.mark.gloo
def test_one_rank_can_be_tuned_too(one_rank: dict[str, Run]) -> None:
    run = one_rank[ALONE]
    assert_trained_alike(run, one_rank[KEEP])
    assert run["forwards"] == [4, 4, 1]
    assert run["plan"]["layers"] == 2


@pytest.mark.gloo
def test_running_out_of_memory_is_an_error_if_that_is_asked_for(two_ranks: dict[str, Run]) -> None:
    error = two_ranks[RAISED]["error"]
    assert error.startswith("PeerError: Rank 1 failed")
    assert "CUDA out of memory. Tried to allocate" in error


@pytest.mark.gloo
def test_a_row_that_does_not_fit_alone_is_named_on_every_rank(two_ranks: dict[str, Run]) -> None:
    error = two_ranks[TOO_LARGE]["error"]
    assert error.startswith("PeerError: Rank 1 failed"), "this is what rank 0 says"
    assert (
        "tokens does not fit into memory by itself on rank 1, with every layer recomputed. Lower `max_length`" in error
    )


@pytest.mark.gloo
def test_one_rank_can_be_planned_too(one_rank: dict[str, Run]) -> None:
    run = one_rank["pieces=1,layers=1"]
    assert_trained_alike(run, one_rank[KEEP])
    assert (run["forwards"], run["kept"]) == ([1, 1, 1], 1)
    assert run["direct"] > 0, "a call outside of a run is not held back"


@pytest.mark.gloo
def test_what_surrounds_the_micro_batches_is_as_asked_for(two_ranks: dict[str, Run]) -> None:
    keep, planned = two_ranks[KEEP], two_ranks["pieces=1"]
    assert planned["substeps"] == keep["substeps"] == 9
    assert planned["tokens seen"] == keep["tokens seen"]


@pytest.mark.gloo
def test_the_padding_of_pieces_is_counted(two_ranks: dict[str, Run]) -> None:
    apart, together = two_ranks["padding_free=no,layers=1"], two_ranks["padding_free=no,pieces=1"]
    assert together["tokens"] == apart["tokens"]
    for real, padded, more in zip(apart["tokens"], apart["computed"], together["computed"], strict=True):
        assert sum(real) < sum(padded) < sum(more)


@pytest.mark.gloo
def test_the_ranks_compute_about_as_many_tokens(two_ranks: dict[str, Run]) -> None:
    for as_they_come, balanced in zip(two_ranks[KEEP]["tokens"], two_ranks["pieces=1"]["tokens"], strict=True):
        assert sum(balanced) == sum(as_they_come)
        assert max(balanced) <= max(as_they_come)
    imbalance = [max(step) / (sum(step) / 2) for step in two_ranks["pieces=1"]["tokens"]]
    assert max(imbalance) < 1.05 < max(max(step) / (sum(step) / 2) for step in two_ranks[KEEP]["tokens"])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"pieces": 0}, "`pieces` must be a positive integer or None, got 0"),
        ({"layers_kept": "max"}, "`layers_kept` must be 0 or more, or 'all', got 'max'"),
        ({"tokens": 512}, "`tokens=512` limits the pieces, so `pieces` must be given"),
        ({"balance": 1}, "`balance` must be true or false, got 1"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(options: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        StepPlan(**options)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="`plan` must be 'auto', 'keep' or a `StepPlan`"):
        UnslothAcceleratorPlugin(plan="fast")  # type: ignore[arg-type]
