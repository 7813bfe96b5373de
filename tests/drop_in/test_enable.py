import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness import ROOT, launch
from unsloth_accel import ConfigurationError, MultiGPUConfig
from unsloth_accel.__main__ import main
from unsloth_accel.drop_in.config import FIELDS


WORKERS = ROOT / "tests" / "workers"
UNCHANGED = ROOT / "examples" / "unchanged.py"


def test_the_config_says_what_is_wrong() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"num_gpus": 0}, "`num_gpus` must be a positive integer, got 0"),
        ({"batch_size_per_gpu": True}, "`batch_size_per_gpu` must be a positive integer"),
        ({"ddp_backend": "mpi"}, "`ddp_backend` must be one of 'nccl', 'gloo', got 'mpi'"),
        ({"debug": "yes"}, "`debug` must be true or false"),
        ({"enable_memory_optimization": "much"}, "`enable_memory_optimization` must be true or false"),
        ({"batch_size_per_cpu": 2}, "Did you mean `batch_size_per_gpu`?"),
    ]
    for values, message in cases:
        with pytest.raises(ConfigurationError, match=message.replace("?", r"\?")):
            MultiGPUConfig.from_dict(values)


def test_the_config_loads_from_yaml_and_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("num_gpus: 2\nddp_backend: gloo\ndebug: true\n")
    assert MultiGPUConfig.from_yaml(file).to_dict() == {"num_gpus": 2, "ddp_backend": "gloo", "debug": True}
    assert MultiGPUConfig.from_yaml(file).launch_config == "cpu_gloo"
    file.write_text("- 2\n")
    with pytest.raises(ConfigurationError, match="must hold a mapping of fields, got a list"):
        MultiGPUConfig.from_yaml(file)
    with pytest.raises(ConfigurationError, match="is no file"):
        MultiGPUConfig.from_yaml(tmp_path / "none.yaml")

    monkeypatch.setenv("UNSLOTH_ACCEL_BATCH_SIZE_PER_GPU", "4")
    monkeypatch.setenv("UNSLOTH_ACCEL_GRADIENT_SYNC", "deferred")  # the plugin's
    assert MultiGPUConfig.from_env().to_dict() == {"batch_size_per_gpu": 4}
    assert MultiGPUConfig(batch_size_per_gpu=2).batch_size_per_gpu == 2, "an argument comes before the environment"
    monkeypatch.setenv("UNSLOTH_ACCEL_NUM_GPU", "2")
    with pytest.raises(ConfigurationError, match="Did you mean `UNSLOTH_ACCEL_NUM_GPUS`"):
        MultiGPUConfig.from_env()
    monkeypatch.delenv("UNSLOTH_ACCEL_NUM_GPU")
    monkeypatch.setenv("UNSLOTH_ACCEL_BATCH_SIZE_PER_GPU", "four")
    with pytest.raises(ConfigurationError, match="`UNSLOTH_ACCEL_BATCH_SIZE_PER_GPU` must be a positive integer"):
        MultiGPUConfig.from_env()


def test_the_page_says_what_each_field_does() -> None:
    page = (ROOT / "docs" / "zero_code_change.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == set(FIELDS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "`SCRIPT` is missing. Run: accelerate launch -m unsloth_accel SCRIPT"), (["none.py"], "got 'none.py'")],
)
def test_the_module_needs_a_script(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        main(arguments)


@pytest.mark.parametrize(
    ("config", "tolerance"),
    [
        pytest.param("cpu_gloo", 1e-6, marks=pytest.mark.gloo),
        pytest.param("ddp_2gpu", 1e-3, marks=pytest.mark.multigpu(gpus=2)),
    ],
)
def test_the_unchanged_script_trains_as_the_explicit_form(
    config: str, tolerance: float, tiny_model: Path, tmp_path: Path
) -> None:
    """The batch size comes from the environment, so the losses can only agree if the module really enabled."""
    options = ("--model", tiny_model, "--max_steps", 4)
    setting = {"UNSLOTH_ACCEL_BATCH_SIZE_PER_GPU": "2"}
    unchanged = ("unsloth_accel", UNCHANGED, *options, "--batch_size", 1, "--output_dir", tmp_path / "unchanged")
    launch(*unchanged, env=setting, config=config)
    explicit = (WORKERS / "explicit.py", *options, "--batch_size", 2, "--output_dir", tmp_path / "explicit")
    launch(*explicit, config=config)

    logs = [
        [entry for entry in json.loads(file.read_text())["log_history"] if "loss" in entry]
        for file in (tmp_path / "unchanged" / "trainer_state.json", tmp_path / "explicit" / "trainer_state.json")
    ]
    assert "unsloth_accel" not in UNCHANGED.read_text().split('"""')[2]
    assert len(logs[0]) == len(logs[1]) == 4
    for mine, explicit in zip(*logs, strict=True):
        if config == "cpu_gloo":  # Unsloth's loss on a GPU does not count them
            assert float(mine["num_tokens"]) == float(explicit["num_tokens"])
        assert float(mine["loss"]) == pytest.approx(float(explicit["loss"]), abs=tolerance)
        assert float(mine["grad_norm"]) == pytest.approx(float(explicit["grad_norm"]), abs=tolerance)


@pytest.mark.gloo
def test_every_name_becomes_the_accelerated_trainer_and_back(tiny_model: Path, tmp_path: Path) -> None:
    launch(WORKERS / "multi_gpu.py", tiny_model, tmp_path / "out.json")

    result = json.loads((tmp_path / "out.json").read_text())
    status = json.loads(result["status"])
    assert status["enabled"] is True
    assert (status["world_size"], status["rank"], status["backend"]) == (2, 0, "gloo")
    assert {"save_once", "tokenize_once", "resume_on_cpu", "frozen_weights"} <= set(status["fixes"])
    assert status["devices"] == ["cpu"]
    assert status["peak_memory_gib"] == []
    decided = {decision["name"]: decision["value"] for decision in status["decisions"]}
    assert decided["per_device_train_batch_size"] == "2"
    assert decided["gradient_checkpointing"] == "False"
    assert decided["step_plan"] == "micro-batches as given, rows as they come"
    assert decided["gradient_sync"] == "deferred"
    assert "per_device_train_batch_size = 2: set by enable_multi_gpu, the script said 1" in result["printed"]
    world, backend, no_arguments = result["errors"]
    assert "`num_gpus=3`, but the launcher started 2 ranks" in world
    assert "`ddp_backend='nccl'`, but the process group runs on 'gloo'" in backend
    assert "per_device_train_batch_size" in no_arguments


@pytest.fixture(scope="module")
def freed(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> SimpleNamespace:
    """What each rank's worker says after it let go of its trainers and models."""
    out = tmp_path_factory.mktemp("freed") / "out"
    launch(WORKERS / "freed.py", tiny_model, out)
    return SimpleNamespace(ranks=[json.loads(out.with_name(f"out-{rank}.json").read_text()) for rank in range(2)])


@pytest.mark.gloo
@pytest.mark.parametrize("case", ["plain TRL", "enabled", "disabled", "free_memory", "fixes"])
def test_what_a_script_lets_go_of_is_freed(case: str, freed: SimpleNamespace) -> None:
    for rank in freed.ranks:
        assert all(rank[case]), f"trainer and model, or what there is of them, are gone: {rank[case]}"


@pytest.mark.gloo
def test_the_status_names_the_fixes_that_are_in_place(freed: SimpleNamespace) -> None:
    of_process = {"main_process_first", "quiet_ranks", "training_banner", "resume_on_cpu"}
    by_trainer = {"save_once", "tokenize_once", "frozen_weights"}
    for rank in freed.ranks:
        applied = {moment: set(fixes) for moment, fixes in rank["status"].items()}
        assert applied == {
            "disabled": set(),
            "enabled": of_process,
            "trained": of_process | by_trainer,
            "undone": of_process | by_trainer - {"save_once"},  # its data and its DDP stay as they were made
            "freed": of_process,
            "disabled again": set(),
        }


@pytest.mark.multigpu(gpus=2)
def test_the_status_names_the_gpus_and_the_peak_of_each(tiny_model: Path, tmp_path: Path) -> None:
    script = tmp_path / "status.py"
    script.write_text(
        "import json, sys\nfrom unsloth_accel import enable_multi_gpu, get_multi_gpu_status\nenable_multi_gpu()\n"
        f"sys.path.insert(0, {str(ROOT / 'examples')!r})\nsys.argv[0] = {str(UNCHANGED)!r}\nimport unchanged\n"
        "print('STATUS', json.dumps(json.loads(get_multi_gpu_status().to_json())))\n"
    )
    done = launch(script, "--model", tiny_model, "--max_steps", 2, config="ddp_2gpu")
    marked = [line for line in done.stdout.splitlines() if line.startswith("STATUS ")]
    lines = [json.loads(line.removeprefix("STATUS ")) for line in marked]
    assert [(status["rank"], status["backend"], status["world_size"]) for status in lines] == [
        (0, "nccl", 2),
        (1, "nccl", 2),
    ]
    for status in lines:
        assert [name.split()[0] for name in status["devices"]] == ["cuda:0", "cuda:1"]
        assert len(status["peak_memory_gib"]) == 2
        assert min(status["peak_memory_gib"]) > 0


@pytest.mark.cpu
def test_plain_python_with_trl_imported_first(tiny_model: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    environment |= {"CUDA_VISIBLE_DEVICES": "-1", "UNSLOTH_COMPILE_LOCATION": str(tmp_path / "compiled")}
    command = [sys.executable, str(WORKERS / "multi_gpu_plain.py"), str(tiny_model), str(tmp_path / "out")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180, check=False)

    assert done.returncode == 0, done.stderr
    assert "LOG no GPU is visible: training runs on the CPU, in one process" in done.stdout
    assert done.stdout.count("LOG enable_multi_gpu was called again") == 1
    assert "rank 0 of 1, backend none yet, cpu" in done.stdout
    assert done.stdout.rstrip().endswith("False")
