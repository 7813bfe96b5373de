"""The resume oracle: what is resumed is, before its first update, the run that was never interrupted."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import ROOT, launch
from trajectories import FLOAT32, Run, assert_follows, read_runs


WORKER = ROOT / "tests" / "workers" / "resume_oracle.py"
KINDS = ["lora", "full"]
STEPS = 9
# Checkpoints: at the end of the first of three epochs, and within the second.
SAVED = [3, 5]

Held = dict[str, Any]


def whole(kind: str) -> str:
    """Never interrupted. Adapters have dropout, so that each random number counts."""
    steps = f"save={'+'.join(map(str, SAVED))},look={'+'.join(str(step + 1) for step in SAVED)}"
    dropout = "0.1" if kind == "lora" else "0"
    return f"name=whole_{kind},kind={kind},folder=whole_{kind},resume=no,dropout={dropout},{steps}"


def resumed(kind: str, step: int, name: str = "resumed") -> str:
    dropout = "0.1" if kind == "lora" else "0"
    options = f"kind={kind},folder=whole_{kind},dropout={dropout},resume={step},look={step + 1}"
    return f"name={name}_{kind}_{step},{options}"


def part(kind: str, number: int, stop: int = STEPS, plan: str = "keep") -> str:
    """Of one run on changing ranks, started each time by the same script."""
    look = {2: 4, 3: 6, 4: 8}.get(number, "")
    return f"name=part_{kind}_{number},kind={kind},folder=parts_{kind},stop={stop},look={look},plan={plan}"


def launched(num_processes: int, cases: list[str], out: Path, model: Path) -> dict[str, Run]:
    # Last, because after one `full_finetuning=True` Unsloth's `get_peft_model` does nothing in that process.
    cases = sorted(cases, key=lambda case: "kind=full" in case)
    launch(WORKER, model, out, *cases, num_processes=num_processes, timeout=400)
    runs = read_runs(out)
    out.unlink()
    for run in runs.values():
        assert "error" not in run, f"{run['case']}: {run['at']}"
    return runs


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("oracle") / "out"


@pytest.fixture(scope="module")
def runs(out: Path, tiny_model: Path) -> dict[str, Run]:
    """2 -> 4 -> 1 -> 2 ranks, and what was never interrupted on 2 and on 1."""
    on_two = [whole(kind) for kind in KINDS] + [part(kind, 1, stop=3) for kind in KINDS]
    on_four = [part(kind, 2, stop=5, plan="balance") for kind in KINDS] + [resumed(kind, 5, "four") for kind in KINDS]
    on_one = [part(kind, 3, stop=7) for kind in KINDS] + [resumed(kind, 5, "one") for kind in KINDS]
    on_one += [f"name=alone_{kind},kind={kind},folder=alone_{kind},resume=no,look=4+6+8" for kind in KINDS]
    again = [part(kind, 4) for kind in KINDS] + [resumed(kind, step) for kind in KINDS for step in SAVED]
    found: dict[str, Run] = {}
    for num_processes, cases in ((2, on_two), (4, on_four), (1, on_one), (2, again)):
        found |= launched(num_processes, cases, out, tiny_model)
    return found


def held(out: Path, name: str, step: int, rank: int) -> Held:
    return dict(torch.load(f"{out}.{name}-{step}-{rank}.pt", map_location="cpu", weights_only=False))


def tensors(holder: Any) -> dict[str, torch.Tensor]:
    """All tensors in a state, by the path that leads to them."""
    if isinstance(holder, torch.Tensor):
        return {"": holder}
    items = holder.items() if isinstance(holder, Mapping) else enumerate(holder) if isinstance(holder, list) else ()
    return {f"{key}.{path}": tensor for key, value in items for path, tensor in tensors(value).items()}


def assert_equal(ours: Any, theirs: Any, path: str = "") -> None:
    if isinstance(theirs, torch.Tensor):
        assert torch.equal(ours, theirs), path
    elif isinstance(theirs, Mapping):
        assert ours.keys() == theirs.keys(), path
        for key in theirs:
            assert_equal(ours[key], theirs[key], f"{path}.{key}")
    else:
        assert ours == theirs, path


def assert_close(ours: Held, theirs: Held) -> None:
    """Weights and AdamW's moments, each tensor relative to its largest value."""
    for what in ("weights", "optimizer"):
        mine, other = tensors(ours[what]), tensors(theirs[what])
        assert mine.keys() == other.keys()
        for path, tensor in other.items():
            scale = tensor.abs().max().item() if tensor.numel() else 0.0
            apart = (mine[path] - tensor).abs().max().item() if tensor.numel() else 0.0
            assert apart <= FLOAT32 * scale, f"{what}{path}"


def rows(out: Path, name: str, step: int, ranks: int) -> list[str]:
    return sorted(row for rank in range(ranks) for row in held(out, name, step, rank)["rows"])


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("step", SAVED)
@pytest.mark.parametrize("kind", KINDS)
def test_the_first_step_on_as_many_ranks_is_that_of_the_uninterrupted_run(
    kind: str, step: int, runs: dict[str, Run], out: Path
) -> None:
    for rank in range(2):
        ours = held(out, f"resumed_{kind}_{step}", step + 1, rank)
        theirs = held(out, f"whole_{kind}", step + 1, rank)
        assert theirs["rows"]
        for what in ("batches", "weights", "optimizer", "scheduler", "random"):
            assert_equal(ours[what], theirs[what], what)
    run, undisturbed = runs[f"resumed_{kind}_{step}"], runs[f"whole_{kind}"]
    assert run["weights"] == undisturbed["weights"], "at the end of training"
    assert [entry["loss"] for entry in run["logs"]] == [entry["loss"] for entry in undisturbed["logs"]]


@pytest.mark.long
@pytest.mark.parametrize(("name", "ranks"), [("four", 4), ("one", 1)])
@pytest.mark.parametrize("kind", KINDS)
def test_the_first_step_on_other_ranks_has_the_same_rows_weights_optimizer_and_scheduler(
    kind: str, name: str, ranks: int, runs: dict[str, Run], out: Path
) -> None:
    case = f"{name}_{kind}_5"
    assert rows(out, case, 6, ranks) == rows(out, f"whole_{kind}", 6, 2)
    theirs = held(out, f"whole_{kind}", 6, 0)
    states = [held(out, case, 6, rank) for rank in range(ranks)]
    for ours in states:
        for what in ("weights", "optimizer", "scheduler"):
            assert_equal(ours[what], theirs[what], what)
    # Dropout draws from torch's generator, more or less with the rows of a rank.
    drawn = ["python", "numpy"] if kind == "lora" else ["python", "numpy", "torch"]
    for rank, ours in enumerate(states[:2]):
        saved = held(out, f"whole_{kind}", 6, rank)["random"]
        for generator in drawn:
            assert_equal(ours["random"][generator], saved[generator], generator)
    anew = {str(state["random"]["python"]) for state in states[2:]}
    assert len(anew) == len(states[2:]), "ranks that the checkpoint does not know draw numbers of their own"


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_on_two_four_one_and_two_ranks_follows_one_rank(kind: str, runs: dict[str, Run], out: Path) -> None:
    alone, last = runs[f"alone_{kind}"], runs[f"part_{kind}_4"]
    assert_follows(last, alone)
    assert len(last["logs"]) == STEPS
    assert [runs[f"part_{kind}_{number}"]["accumulation"] for number in (1, 2, 3, 4)] == [2, 1, 4, 2]
    for number, step, ranks in ((2, 4, 4), (3, 6, 1), (4, 8, 2)):
        name = f"part_{kind}_{number}"
        assert runs[name]["between_ranks"] == 0.0
        assert rows(out, name, step, ranks) == rows(out, f"alone_{kind}", step, 1)
        theirs = held(out, f"alone_{kind}", step, 0)
        for rank in range(ranks):
            ours = held(out, name, step, rank)
            assert_close(ours, theirs)
            assert ours["scheduler"] == theirs["scheduler"]


@pytest.mark.multigpu(gpus=2)
@pytest.mark.timeout(580)
@pytest.mark.parametrize("kind", KINDS)
def test_the_first_step_on_gpus_is_that_of_the_uninterrupted_run(kind: str, out: Path, tiny_model: Path) -> None:
    """Once on as many GPUs, once on one."""
    # Compiling the tiny model would take most of the time and change nothing about what is saved.
    env = {"UNSLOTH_DATASET_NUM_PROC": "1", "UNSLOTH_COMPILE_DISABLE": "1"}
    gpus = out.with_name(f"gpus_{kind}")
    for config, case in (
        ("ddp_2gpu", whole(kind)),
        ("ddp_2gpu", resumed(kind, 5)),
        ("single", resumed(kind, 5, "one")),
    ):
        launch(WORKER, tiny_model, gpus, case, num_processes=None, config=config, env=env, timeout=180)
    for run in read_runs(gpus).values():
        assert "error" not in run, run["at"]
    theirs = [held(gpus, f"whole_{kind}", 6, rank) for rank in range(2)]
    for rank in range(2):
        ours = held(gpus, f"resumed_{kind}_5", 6, rank)
        for what in ("batches", "weights", "optimizer", "scheduler", "random"):
            assert_equal(ours[what], theirs[rank][what], what)
    alone = held(gpus, f"one_{kind}_5", 6, 0)
    assert sorted(alone["rows"]) == rows(gpus, f"whole_{kind}", 6, 2)
    for what in ("weights", "optimizer", "scheduler"):
        assert_equal(alone[what], theirs[0][what], what)
