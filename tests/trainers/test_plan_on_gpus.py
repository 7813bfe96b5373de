"""A plan is made from what real cards measure, and a card that is too small changes how, not what is trained."""

import subprocess
import sys
from pathlib import Path

import pytest

from harness import ROOT, launch
from trajectories import BF16, Run, assert_follows, read_runs


WORKER = ROOT / "tests" / "workers" / "plan_on_gpus.py"
LAYERS = 16
# By the GiB that the last rank may allocate: the layers that can be kept, at least and at most, in one piece. What the
# rest of the model takes is measured in the run, and differs a little between versions.
HELD = {12: (LAYERS, LAYERS), 8: (6, LAYERS - 1), 6: (1, 9), 5: (0, 4)}
TOO_LARGE = 'plan={"pieces": 1, "layers_kept": "all"};gib=5.5'
TUNED = "plan=auto;gib=6;steps=34"

pytestmark = [pytest.mark.multigpu(gpus=2), pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def runs(result_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    model, out = tmp_path_factory.mktemp("model") / "1b", result_folder / "plan_on_gpus.jsonl"
    subprocess.run([sys.executable, "-m", "unsloth_accel.bench.random_llama", "1b", model], check=True, cwd=ROOT)
    cases = ["plan=keep", "plan=auto", *(f"plan=auto;gib={gib}" for gib in HELD), TOO_LARGE, TUNED]
    launch(WORKER, model, out, *cases, num_processes=None, config="ddp_2gpu", timeout=380)
    return read_runs(out)


@pytest.mark.parametrize("case", ["plan=auto", *(f"plan=auto;gib={gib}" for gib in HELD), TOO_LARGE])
def test_the_run_is_the_same(case: str, runs: dict[str, Run]) -> None:
    assert_follows(runs[case], runs["plan=keep"], BF16)
    assert runs[case]["between_ranks"] == 0.0


def test_where_there_is_room_one_piece_keeps_every_layer(runs: dict[str, Run]) -> None:
    plan = runs["plan=auto"]["plan"]
    assert (plan["plan"]["pieces"], plan["plan"]["layers_kept"], plan["layers"]) == (1, LAYERS, LAYERS)
    assert runs["plan=auto"]["forwards"] == [4, 4, 1, 1, 1]


@pytest.mark.parametrize("gib", HELD)
def test_the_smallest_card_decides_and_nothing_runs_out(gib: int, runs: dict[str, Run]) -> None:
    run = runs[f"plan=auto;gib={gib}"]
    least, most = HELD[gib]
    assert least <= run["plan"]["candidates"][0]["layers_kept"] <= most
    assert max(run["peaks"]) < gib
    assert not any(map(any, run["cuts"]))


def test_a_plan_that_is_too_large_for_one_card_is_made_smaller_on_all(runs: dict[str, Run]) -> None:
    run = runs[TOO_LARGE]
    assert run["cuts"][0][1] > 0, "the last rank ran out of memory in the first step"
    assert run["forwards"][:2] == [1, 2], "the first rank did not, and follows"
    assert "rank 1 ran out of memory" in run["plan"]["reason"]


def test_candidates_are_measured_on_real_steps(runs: dict[str, Run]) -> None:
    run = runs[TUNED]
    assert "error" not in run, run.get("at")
    tried = run["plan"]["candidates"]
    assert len(tried) > 1
    assert all(one["microseconds"] > 0 for one in tried)
    assert run["forwards"][-1] == run["plan"]["plan"]["pieces"]
