"""Models whose batches do not all train the same parameters: two ranks follow one (docs/gradient_sync.md).

On GPUs with real Unsloth. On the CPU, where Unsloth's backend refuses vision models, with transformers' models and
trainer and our mixin in front of it.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from harness import ON_CPU, ROOT, launch
from trajectories import Run, assert_follows, assert_same_weights, read_runs


WORKER = ROOT / "tests" / "workers" / "model_families.py"
TOWERS = ["qwen2_5_vl", "gemma3"]
EXPERTS = ["qwen3_moe"]
SHARED_KV = ["gemma3n", "gemma4"]
FAMILIES = [*TOWERS, *EXPERTS, *SHARED_KV]
STEPS = 4


def assert_trains_as(two: Run, one: Run) -> None:
    assert_follows(two, one)
    assert len({entry["loss"] for entry in two["logs"]}) == STEPS, f"{two['case']} does not train"
    assert two["between_ranks"] == 0.0


# On the CPU.
FULL = [f"family={family}" for family in FAMILIES]
FOLLOWING = [*FULL, *(f"{case},sync=overlapped" for case in FULL), "family=gemma3,checkpointing=reentrant"]
READY_TWICE = "family=gemma3,checkpointing=reentrant,sync=overlapped"


class OnCpu(NamedTuple):
    one: dict[str, Run]
    """What one rank trained without us, by family."""
    two: dict[str, Run]
    said: str
    """The errors and warnings of the two ranks."""


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory: pytest.TempPathFactory) -> OnCpu:
    folder = tmp_path_factory.mktemp("families")
    one, two = folder / "one", folder / "two"
    alone = [sys.executable, str(WORKER), "-", str(one), *(f"{case},trainer=plain" for case in FULL)]
    subprocess.run(alone, env={**os.environ, **ON_CPU, "PYTHONPATH": str(ROOT)}, cwd=folder, check=True, timeout=280)
    said = launch(WORKER, "-", two, *FOLLOWING, READY_TWICE, timeout=280).stderr
    return OnCpu({run["family"]: run for run in read_runs(one).values()}, read_runs(two), said)


@pytest.mark.long
@pytest.mark.parametrize("case", FOLLOWING)
def test_two_ranks_follow_one(on_cpu: OnCpu, case: str) -> None:
    two = on_cpu.two[case]
    one = on_cpu.one[two["family"]]
    assert_trains_as(two, one)
    assert_same_weights(two, one)


@pytest.mark.long
def test_the_ranks_route_to_other_experts(on_cpu: OnCpu) -> None:
    for sync in ("", ",sync=overlapped"):
        first, second = on_cpu.two[f"family=qwen3_moe{sync}"]["experts"]
        assert len(first) == len(second) == STEPS
        for ours, theirs in zip(first, second, strict=True):
            assert ours != theirs
            assert len({*ours, *theirs}) < 64, "some experts have no token on any rank"


@pytest.mark.long
@pytest.mark.parametrize("family", FAMILIES)
def test_unused_parameters_are_searched_only_where_there_can_be_some(on_cpu: OnCpu, family: str) -> None:
    overlapped = on_cpu.two[f"family={family},sync=overlapped"]
    assert overlapped["find_unused_parameters"] == (family in TOWERS)


@pytest.mark.long
def test_what_overlapped_gradients_cannot_do_is_said_before(on_cpu: OnCpu) -> None:
    """Reentrant checkpointing and the search for unused parameters: DDP dies, deferred gradients do not."""
    result = on_cpu.two[READY_TWICE]
    assert "Expected to mark a variable ready only once" in result["error"]
    warned = "a tower that text-only batches skip, so checkpointing must have use_reentrant=False"
    overlapped = [case for case in (*FOLLOWING, READY_TWICE) if "overlapped" in case]
    towers = [case for case in overlapped if any(f"family={family}," in case for family in TOWERS)]
    assert on_cpu.said.count(warned) == len(towers), "once for each such run, by rank 0"


# On GPUs.
CASES = [
    f"family={family},kind={kind},checkpointing={checkpointing}"
    for family, kind, checkpointing in product(FAMILIES, ("lora", "full"), ("unsloth", "false"))
]
SYNCS = ["auto", "overlapped"]


def launches(families: Sequence[str]) -> Iterator[tuple[str, int, list[str]]]:
    """Name of the result file, GPUs, cases. Few cases each: one that hangs or dies takes no others with it."""
    for family in families:
        mine = [case for case in CASES if case.startswith(f"family={family},")]
        yield f"{family}-one", 1, [f"{case},trainer=plain" for case in mine]
        for sync in SYNCS:
            yield f"{family}-{sync}", 2, [f"{case},sync={sync}" for case in mine]
    if "GPU_RESULTS" in os.environ:  # for the record: what happens without us, to be read and not judged
        for family, kind in product(families, ("lora", "full")):
            case = f"family={family},kind={kind},checkpointing=unsloth,trainer=plain"
            yield f"{family}-{kind}-plain", 2, [case]


@pytest.fixture(scope="module")
def on_gpus(
    result_folder: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> dict[tuple[int, str], Run]:
    """The results of all launches for the families of the chosen tests, by GPUs and case."""
    chosen = "\n".join(item.name for item in request.session.items)
    families = [family for family in FAMILIES if re.search(rf"\b{family}\b", chosen)]
    models = tmp_path_factory.mktemp("models")
    subprocess.run([sys.executable, str(WORKER), "save", str(models)], check=True, timeout=120)

    def run(name: str, gpus: int, cases: list[str]) -> dict[tuple[int, str], Run]:
        # Compiling the tiny models would take minutes and change nothing about what is reduced when.
        env = {"UNSLOTH_COMPILE_DISABLE": "1", "UNSLOTH_FORCE_SINGLE_COMPILE_WORKER": "1"}
        env |= {"UNSLOTH_DATASET_NUM_PROC": "1", "CUDA_VISIBLE_DEVICES": "0,1"[: 2 * gpus - 1]}
        options: dict[str, Any] = {
            "config": "single" if gpus == 1 else "ddp_2gpu",
            "options": ["--mixed_precision", "no"],
        }
        out = result_folder / f"{name}.jsonl"
        try:
            launch(WORKER, models, out, *cases, num_processes=None, env=env, timeout=280, **options)
            died = ""
        except AssertionError as error:  # what was not reached says so, the rest is judged
            died = str(error)
            out.with_suffix(".died.txt").write_text(died)
        found = read_runs(out) if out.exists() else {}
        return {(gpus, case): found.get(case, {"case": case, "error": "no result", "at": died}) for case in cases}

    with ThreadPoolExecutor(12) as pool:
        done = list(pool.map(lambda one: run(*one), launches(families)))
    return {key: result for results in done for key, result in results.items()}


@pytest.mark.multigpu(gpus=2)
@pytest.mark.timeout(590)
@pytest.mark.parametrize("sync", SYNCS)
@pytest.mark.parametrize("case", CASES)
def test_two_gpus_follow_one(on_gpus: dict[tuple[int, str], Run], case: str, sync: str) -> None:
    """Compared with one GPU without checkpointing, which must not change what is computed. Reentrant checkpointing,
    which Unsloth asks for in Gemma 3n and 4, does: in transformers it drops the gradient of shared keys and values."""
    one = on_gpus[1, f"{case.replace('=unsloth', '=false')},trainer=plain"]
    assert_trains_as(on_gpus[2, f"{case},sync={sync}"], one)


@pytest.mark.multigpu(gpus=2)
@pytest.mark.timeout(590)
@pytest.mark.parametrize("family", [*TOWERS, *EXPERTS, "gemma3n"])
def test_activations_come_back_from_the_host_ahead(on_gpus: dict[tuple[int, str], Run], family: str) -> None:
    """The fix `activation_offload`; where a trajectory was followed above, it was followed with it."""
    for kind, sync in product(("lora", "full"), SYNCS):
        case = f"family={family},kind={kind},checkpointing={{}},sync={sync}"
        assert on_gpus[2, case.format("unsloth")]["prefetched"] > 0
        assert on_gpus[2, case.format("false")]["prefetched"] == 0
