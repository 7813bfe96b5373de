"""Four GPUs follow one, and a run that they began goes on with two."""

from pathlib import Path

import pytest

from harness import ROOT, launch
from trajectories import BF16, Run, assert_follows, read_runs


TRAJECTORY = ROOT / "tests" / "workers" / "trajectory.py"
RESUME = ROOT / "tests" / "workers" / "resume_oracle.py"
KINDS = ["lora", "embed_head", "qlora", "full"]
CASES = [f"kind={kind},checkpointing=unsloth,batch=16,accumulation={n}" for kind in KINDS for n in (1, 4)]
STEPS = 5  # in each of which QLoRA's weights, which are bfloat16, are rounded, too
ONE_PROCESS = {"UNSLOTH_DATASET_NUM_PROC": "1"}

pytestmark = [pytest.mark.multigpu(gpus=4), pytest.mark.timeout(580)]


@pytest.fixture(scope="module")
def results(result_folder: Path, tiny_model: Path) -> tuple[dict[str, Run], dict[str, Run]]:
    """The cases on one GPU and on four."""
    out = result_folder / "one_for_four.jsonl", result_folder / "four.jsonl"
    plain = [f"{case},trainer=plain" for case in CASES]
    launch(TRAJECTORY, tiny_model, out[0], *plain, num_processes=None, config="single", env=ONE_PROCESS, timeout=400)
    launch(TRAJECTORY, tiny_model, out[1], *CASES, num_processes=None, config="ddp_4gpu", env=ONE_PROCESS, timeout=400)
    return read_runs(out[0]), read_runs(out[1])


@pytest.mark.parametrize("case", CASES)
def test_four_gpus_follow_one(results: tuple[dict[str, Run], dict[str, Run]], case: str) -> None:
    one, four = results[0][f"{case},trainer=plain"], results[1][case]
    assert_follows(four, one, (1 + STEPS) * BF16 if four["kind"] == "qlora" else BF16)
    assert four["between_ranks"] == 0.0
    assert four["world_size"] == 4


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_two_gpus_go_on_with_what_four_began(kind: str, tmp_path: Path, tiny_model: Path) -> None:
    """2 -> 4 -> 1 on CPU ranks: tests/recovery/test_resume_oracle.py."""
    # Compiling the tiny model would take most of the time and change nothing about what is saved.
    env = ONE_PROCESS | {"UNSLOTH_COMPILE_DISABLE": "1"}
    cases = {
        "single": f"name=alone,kind={kind},folder=alone,resume=no",
        "ddp_4gpu": f"name=four,kind={kind},folder=parts,resume=no,stop=5",
        "ddp_2gpu": f"name=two,kind={kind},folder=parts",
    }
    out = tmp_path / "out"
    for config, case in cases.items():
        launch(RESUME, tiny_model, out, case, num_processes=None, config=config, env=env, timeout=180)
    runs = read_runs(out)
    assert "error" not in runs["four"], runs["four"]["at"]
    assert_follows(runs["two"], runs["alone"], BF16)
    assert runs["two"]["between_ranks"] == 0.0
