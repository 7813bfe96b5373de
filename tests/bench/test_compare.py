"""Real contenders train the same rows on CPU ranks."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness import ROOT, launch, rank_results
from unsloth_accel import ConfigurationError
from unsloth_accel.bench import compare as bench
from unsloth_accel.bench.comparison import Comparison
from unsloth_accel.bench.contenders import CONTENDERS, check
from unsloth_accel.bench.table import loss_difference
from unsloth_accel.bench.workload import Workload


# Those that can train without a GPU and with padded rows, which is all that Unsloth's CPU backend knows.
ON_CPU = ["varlen", "plain", "token-balance", "rebalance", "keep", "overlapped"]
STEPS = 4
# Relative, of losses with 5 decimals.
SAME = 1e-5

# `trl` and `varlen` load their library and a model; `generated` has the arguments that Unsloth generates on a GPU.
LOADS = """
import json, sys
if sys.argv[1] == "generated":
    import generated_trainers
    generated_trainers.load("sft_trainer")
from unsloth_accel.bench.comparison import Comparison
from unsloth_accel.bench.contenders import CONTENDERS
from unsloth_accel.bench.models import load
from unsloth_accel.bench.workload import Workload
contender = CONTENDERS["varlen" if sys.argv[1] == "generated" else sys.argv[1]]
work = Workload.parse("4x1:fixed")
comparison = Comparison(model="tiny", works=(work,), contenders=())
found = {}
if sys.argv[1] != "generated":
    model, _ = load(contender.library, comparison)
    found["adapters"] = {name: p.double().sum().item() for name, p in model.named_parameters() if "lora" in name}
from unsloth_accel.bench.training import arguments
import trl
found["imported"] = [name for name in ("trl", "unsloth") if name in sys.modules]
found["defaults"] = trl.SFTConfig("out", use_cpu=True).to_dict()
found["arguments"] = arguments(contender, work, comparison, "out").to_dict()
print(json.dumps(found, default=str))
"""
OF_AN_UPDATE = ["learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "weight_decay", "optim"]
OF_AN_UPDATE += ["optim_args", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "max_steps", "seed"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a model in it."""
    made = tmp_path_factory.mktemp("compare")
    subprocess.run([sys.executable, "-m", "unsloth_accel.bench.random_llama", "tiny", "tiny"], cwd=made, check=True)
    return made


def compare(
    folder: Path, work: str, ranks: int, contenders: list[str], *options: str
) -> tuple[list[dict[str, Any]], str]:
    """The results that the script wrote to its file, and what it printed."""
    out = folder / f"{ranks}.jsonl"
    settings = [*options, "--warmup", "1", "--tuning", "4", "--steps", str(STEPS - 1), "--seq", "512"]
    command = [sys.executable, str(ROOT / "benchmarks" / "compare.py"), "--model", "tiny", *settings, "--work", work]
    command += ["--nproc", str(ranks), "--out", str(out), "--contenders", *contenders]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in out.read_text().splitlines()], done.stdout


@pytest.mark.long
def test_all_contenders_train_the_same_rows_to_the_same_losses(folder: Path) -> None:
    results, printed = compare(folder, "4x2:lognormal:padded", 2, ON_CPU, "--cpu", "--rounds", "1")
    assert [one["contender"] for one in results] == ON_CPU
    reference = results[0]
    for one in results:
        assert len(one["loss"]) == STEPS
        assert loss_difference([one], [reference]) < SAME
        assert one["tokens"] == reference["tokens"]
        assert one["world_size"] == 2
        assert one["imbalance"] >= 1
        assert f"| {one['contender']} | " in printed
    # It deals the rows in another way, and they are the same.
    assert next(one for one in results if one["contender"] == "rebalance")["imbalance"] != reference["imbalance"]
    alone, _ = compare(folder, "8x2:lognormal:padded", 1, ["varlen", "keep"], "--cpu", "--rounds", "1")
    assert all(loss_difference([one], [reference]) < SAME for one in alone)
    assert all(one["tokens"] == reference["tokens"] and one["imbalance"] == 1 for one in alone)
    # What another row in a step would change is far more than that.
    assert max(reference["loss"]) - min(reference["loss"]) > 10 * SAME * max(reference["loss"])


@pytest.fixture(scope="module")
def loaded(folder: Path) -> dict[str, Any]:
    """What a process of each has."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "workers")])
    found = {}
    for name in ("trl", "varlen", "generated"):
        done = subprocess.run(
            [sys.executable, "-c", LOADS, name],
            env={**os.environ, "PYTHONPATH": paths},
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=180,
        )
        assert done.returncode == 0, done.stderr
        found[name] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.cpu
def test_trl_is_loaded_without_unsloth_and_begins_with_the_same_adapters(loaded: dict[str, Any]) -> None:
    assert loaded["trl"]["imported"] == ["trl"]
    assert loaded["varlen"]["imported"] == ["trl", "unsloth"]
    assert loaded["trl"]["adapters"] == loaded["varlen"]["adapters"]


@pytest.mark.cpu
def test_all_libraries_update_in_the_same_way(loaded: dict[str, Any]) -> None:
    warmup = [loaded[name]["defaults"]["warmup_steps"] for name in ("trl", "generated")]
    assert warmup[0] != warmup[1], "what this guards against is gone"
    for key in OF_AN_UPDATE:
        assert loaded["trl"]["arguments"][key] == loaded["generated"]["arguments"][key], key


def test_what_cannot_train_here_is_said_before_anything_starts() -> None:
    with pytest.raises(ConfigurationError, match="'trl', but TRL's loss needs a GPU"):
        check(["varlen", "trl"], on_cpu=True)
    check(list(CONTENDERS), on_cpu=False)
    with pytest.raises(ConfigurationError, match="got 'nemo'"):
        check(["nemo"], on_cpu=False)
    smaller = Comparison(model="tiny", works=(), contenders=("varlen",), card_gib=15)
    with pytest.raises(ConfigurationError, match="`card_gib` is what a GPU has"):
        bench.compare(smaller, num_processes=2, on_cpu=True)


def test_a_comparison_that_compares_nothing_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="`warmup` must be 1 or more, got 0"):
        Comparison(model="tiny", works=(), contenders=(), warmup=0)
    with pytest.raises(ConfigurationError, match="`card_gib` must be more than 0, got 0"):
        Comparison(model="tiny", works=(), contenders=(), card_gib=0)
    with pytest.raises(ConfigurationError, match="'rebalance'"):
        Comparison(model="tiny", works=(Workload.parse("1x1:fixed:packed"),), contenders=("rebalance",))


def test_who_cannot_train_rows_with_images_is_said_before_anything_starts() -> None:
    images, text = Workload.parse("1x1:fixed:images"), Workload.parse("1x1:fixed:padded")
    with pytest.raises(ConfigurationError, match="`works` has rows with images and, in '1x1:fixed:padded', rows with"):
        Comparison(model="tiny", works=(images, text), contenders=("varlen",))
    for name in ("trl", "liger", "rebalance"):
        with pytest.raises(ConfigurationError, match=f"`contenders` has '{name}', which does not train rows with im"):
            Comparison(model="tiny", works=(images,), contenders=("varlen", name))
        assert not Comparison(model="tiny", works=(text,), contenders=("varlen", name)).has_images
    seeing = Comparison(model="tiny", works=(images,), contenders=("varlen",))
    with pytest.raises(ConfigurationError, match="`works` has rows with images, which Unsloth trains on GPUs only"):
        bench.compare(seeing, num_processes=2, on_cpu=True)


@pytest.mark.long
@pytest.mark.parametrize("work", ["2x2:lognormal", "2x2:pareto:packed"])
def test_rows_side_by_side_are_counted_and_trained_alike(folder: Path, tmp_path: Path, work: str) -> None:
    names = ["plain", "keep", "balanced", "planned"]
    launch(ROOT / "tests" / "workers" / "padding_free_contenders.py", folder / "tiny", tmp_path / "out", work, *names)
    first, second = rank_results(tmp_path / "out")
    assert [first[name]["loss"] for name in names] == [second[name]["loss"] for name in names]
    for name in names:
        assert loss_difference([first[name]], [first["plain"]]) < SAME
        assert first[name]["tokens"] == first["plain"]["tokens"]
    assert first["keep"]["imbalance"] == first["plain"]["imbalance"]
    assert first["balanced"]["imbalance"] <= first["plain"]["imbalance"]


@pytest.mark.multigpu(gpus=2)
def test_rows_with_images_are_trained_alike_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One model of `FastVisionModel` in two rounds of four trainers, on two GPUs and on one."""
    monkeypatch.setenv("UNSLOTH_COMPILE_DISABLE", "1")
    save = [sys.executable, "-m", "unsloth_accel.bench.random_vision", "tiny", "tiny"]
    subprocess.run(save, cwd=tmp_path, check=True, timeout=120)
    names = ["varlen", "keep", "auto", "pieces"]
    two, _ = compare(tmp_path, "2x2:lognormal:images", 2, names, "--rounds", "2")
    one, _ = compare(tmp_path, "4x2:lognormal:images", 1, names, "--rounds", "2")
    for results in (two, one):
        assert [run["contender"] for run in results] == names * 2
        assert {run["tokens"] for run in results} == {two[0]["tokens"]}
        assert {run["mfu"] for run in results} == {None}
        # A tenth of how much the losses of these steps differ.
        assert all(loss_difference([run], results[:1]) < 1e-4 for run in results)
