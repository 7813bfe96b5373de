"""The shipped configs: found by name, accepted by Accelerate, and doing what they say."""

import dataclasses
import json
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness import ON_CPU, ROOT, free_port, launch
from unsloth_accel.cli.main import main
from unsloth_accel.errors import ConfigurationError
from unsloth_accel.launch.configs import config_names, config_path


FOLDER = ROOT / "accelerate_configs"
NAMES = ["cpu_gloo", "ddp", "ddp_2gpu", "ddp_4gpu", "ddp_8gpu", "ddp_fp16", "ddp_multinode", "single"]
PRINT_RANK = ROOT / "tests" / "workers" / "print_rank.py"

# What Accelerate's own loader makes of each: type, processes, machines, precision, CPU.
LOADED = {
    "cpu_gloo": ("MULTI_GPU", 2, 1, "no", True),
    "ddp": ("MULTI_GPU", "gpu", 1, "bf16", False),
    "ddp_2gpu": ("MULTI_GPU", 2, 1, "bf16", False),
    "ddp_4gpu": ("MULTI_GPU", 4, 1, "bf16", False),
    "ddp_8gpu": ("MULTI_GPU", 8, 1, "bf16", False),
    "ddp_fp16": ("MULTI_GPU", "gpu", 1, "fp16", False),
    "ddp_multinode": ("MULTI_GPU", 16, 2, "bf16", False),
    "single": ("NO", 1, 1, "bf16", False),
}


def ranks_of(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_the_names_are_these() -> None:
    assert config_names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_short_name_is_found(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert config_path(name) == FOLDER / f"{name}.yaml"


def test_an_existing_file_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    mine = tmp_path / "ddp"
    mine.write_text("distributed_type: MULTI_GPU\n")
    assert config_path("ddp") == mine
    mine.unlink()
    mine.mkdir()
    assert config_path("ddp") == FOLDER / "ddp.yaml"


@pytest.mark.parametrize(("name", "hint"), [("ddp_3gpu", "Did you mean 'ddp_"), ("dpp", "Did you mean 'ddp'?")])
def test_an_unknown_name_is_an_error_with_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(ConfigurationError, match=r"`name` must be an existing file or one of cpu_gloo, ddp") as caught:
        config_path(name)
    assert f"got '{name}'. {hint}" in str(caught.value)


def test_a_name_like_no_other_gets_no_hint() -> None:
    with pytest.raises(ConfigurationError, match=r"got 'zzz'\.$"):
        config_path("zzz")


@pytest.mark.parametrize("name", NAMES)
def test_accelerate_loads_it(name: str) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(config_path(name)))
    assert LOADED[name] == (
        config.distributed_type.value,
        config.num_processes,
        config.num_machines,
        config.mixed_precision,
        config.use_cpu,
    )


@pytest.mark.parametrize("name", NAMES)
def test_each_key_has_a_comment_and_is_not_a_default(name: str) -> None:
    from accelerate.commands.config.config_args import ClusterConfig

    text = config_path(name).read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert text.isascii()
    defaults = {field.name: field.default for field in dataclasses.fields(ClusterConfig)}
    for key, value in yaml.safe_load(text).items():
        assert re.search(rf"^{key}: \S+ # \S", text, re.MULTILINE), f"{key} has no comment"
        assert value != defaults[key], f"{key} is Accelerate's default"


def test_the_command_line_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == NAMES
    assert lines[1] == "ddp            All GPUs of this machine, one process each."


def test_the_command_line_prints_a_path_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "path", "ddp"]) == 0
    assert capsys.readouterr().out == f"{FOLDER / 'ddp.yaml'}\n"


def test_the_command_line_explains_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "path", "dpp"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("unsloth-accel: error: `name` must be")


@pytest.mark.parametrize("arguments", [[], ["config"], ["config", "path"], ["confg"]])
def test_the_command_line_needs_a_whole_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: unsloth-accel" in capsys.readouterr().err


def test_the_command_line_copies_to_a_file_or_a_folder_and_over_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    original = (FOLDER / "ddp.yaml").read_bytes()
    for destination, written in [(tmp_path / "mine.yaml", "mine.yaml"), (tmp_path, "ddp.yaml")]:
        assert main(["config", "copy", "ddp", str(destination)]) == 0
        assert (tmp_path / written).read_bytes() == original
        assert capsys.readouterr().out == f"{tmp_path / written}\n"
    (tmp_path / "mine.yaml").write_text("edited")
    assert main(["config", "copy", "ddp", str(tmp_path / "mine.yaml")]) == 2
    assert "`DEST` must be a new file" in capsys.readouterr().err
    assert (tmp_path / "mine.yaml").read_text() == "edited"
    assert main(["config", "copy", "ddp", str(tmp_path / "nowhere" / "ddp.yaml")]) == 2
    assert "`DEST` must lie in an existing folder" in capsys.readouterr().err


@pytest.mark.gloo
def test_cpu_gloo_starts_two_gloo_ranks() -> None:
    ranks = ranks_of(launch(PRINT_RANK))
    assert ranks == [
        {"rank": rank, "ranks": [0, 1], "device": "cpu", "backend": "gloo", "precision": "no"} for rank in (0, 1)
    ]


@pytest.mark.gloo
def test_ddp_without_a_gpu_is_a_clear_error_and_starts_no_rank() -> None:
    done = launch(PRINT_RANK, config="ddp", num_processes=None, env=ON_CPU, expect_failure=True)
    assert "Cuda is not available" in done.stderr
    assert ranks_of(done) == []


@pytest.mark.gloo
def test_multinode_takes_rank_and_address_from_the_command_line() -> None:
    port = free_port()

    def machine(rank: int) -> list[dict[str, Any]]:
        options = ["--machine_rank", str(rank), "--main_process_ip", "127.0.0.1", "--main_process_port", str(port)]
        return ranks_of(launch(PRINT_RANK, config="ddp_multinode", options=options, env=ON_CPU))

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(machine, (0, 1))
    assert [rank["rank"] for rank in first + second] == [0, 1]
    assert all(rank["ranks"] == [0, 1] and rank["precision"] == "bf16" for rank in first + second)


@pytest.mark.gpu
def test_cpu_gloo_stays_off_the_gpus() -> None:
    assert [rank["device"] for rank in ranks_of(launch(PRINT_RANK))] == ["cpu", "cpu"]


@pytest.mark.gpu
def test_single_runs_one_process_on_one_gpu() -> None:
    (rank,) = ranks_of(launch(PRINT_RANK, config="single", num_processes=None))
    assert (rank["device"], rank["ranks"], rank["precision"]) == ("cuda", [0], "bf16")


@pytest.mark.multigpu
def test_ddp_uses_every_visible_gpu() -> None:
    import torch

    ranks = ranks_of(launch(PRINT_RANK, config="ddp", num_processes=None))
    assert [rank["rank"] for rank in ranks] == list(range(torch.cuda.device_count()))
    assert {(rank["device"], rank["backend"], rank["precision"]) for rank in ranks} == {("cuda", "nccl", "bf16")}


@pytest.mark.multigpu
def test_ddp_narrows_to_the_visible_gpus() -> None:
    visible = {"CUDA_VISIBLE_DEVICES": "1"}
    (rank,) = ranks_of(launch(PRINT_RANK, config="ddp", num_processes=None, env=visible))
    assert (rank["rank"], rank["device"], rank["ranks"]) == (0, "cuda", [0])


@pytest.mark.multigpu
def test_ddp_fp16_and_ddp_2gpu() -> None:
    for config, precision in [("ddp_fp16", "fp16"), ("ddp_2gpu", "bf16")]:
        ranks = ranks_of(launch(PRINT_RANK, config=config, num_processes=None, env={"CUDA_VISIBLE_DEVICES": "0,1"}))
        assert [(rank["rank"], rank["precision"]) for rank in ranks] == [(0, precision), (1, precision)]


def test_no_config_lies_elsewhere() -> None:
    """One copy: a second one would drift."""
    found = [path for path in Path(ROOT / "unsloth_accel").rglob("*.yaml") if "num_processes" in path.read_text()]
    assert found == []
