"""What is said of Accelerate's default config, and that Accelerate does what is said."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness import ROOT
from unsloth_accel.doctor.finding import Finding
from unsloth_accel.doctor.launch_config import check_launch_config
from unsloth_accel.doctor.survey import Survey


H100 = {"capability": [9, 0]}
T4 = {"capability": [7, 5]}


def check(path: Path, text: str, *cards: dict[str, Any]) -> list[Finding]:
    path.write_text(text)
    return list(check_launch_config(Survey({"launch config": str(path), "gpus": list(cards)})))


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    return tmp_path / "default_config.yaml"


def test_no_default_config_is_fine(path: Path) -> None:
    (found,) = check_launch_config(Survey({"launch config": str(path), "gpus": []}))
    assert found.verdict == "PASS"


@pytest.mark.parametrize(
    ("text", "cards", "verdict", "said", "mend"),
    [
        ("distributed_type: MULTI_CPU\nnum_processes: 2", [], "FAIL", "starts one process", "cpu_gloo"),
        ("distributed_type: MULTI_GPU\nnum_processes: 2", [], "FAIL", "no GPU is visible", "cpu_gloo"),
        ("distributed_type: MULTI_GPU\nnum_processes: 4", [H100, H100], "FAIL", "2 GPUs are", "--num_processes 2"),
        (
            "distributed_type: MULTI_GPU\nnum_processes: 2\nuse_cpu: true",
            [],
            "WARN",
            "train apart",
            "ACCELERATE_USE_CPU",
        ),
        ("distributed_type: FSDP\nnum_processes: 2", [H100, H100], "WARN", "stands down", "ddp"),
        ('distributed_type: "NO"\nnum_processes: 1', [H100, H100], "WARN", "one process, not 2", "ddp"),
        ("distributed_type: NO\nnum_processes: 2", [], "WARN", "one process, not 2", "ddp"),
        ("distributed_type: MULTI_GPU\nnum_processes: 1\nmixed_precision: bf16", [T4], "FAIL", "bf16", "ddp_fp16"),
        ("distributed_type: MULTI_GPU\nnum_processes: 1\nmixed_precision: no", [H100], "FAIL", "a bare no", '"no"'),
        ("num_processes: 2", [], "FAIL", "has no distributed_type", "rm "),
        ("{", [], "FAIL", "cannot be read", "rm "),
    ],
)
def test_what_is_wrong_is_said_with_what_mends_it(
    path: Path, text: str, cards: list[dict[str, Any]], verdict: str, said: str, mend: str
) -> None:
    (found,) = check(path, text, *cards)
    assert found.verdict == verdict
    assert said in found.message
    assert str(path) in found.message
    assert mend in found.mend


@pytest.mark.parametrize("name", ["ddp", "ddp_2gpu", "ddp_fp16", "single"])
def test_the_shipped_configs_pass_where_they_belong(path: Path, name: str) -> None:
    cards = [H100] if name == "single" else [H100, H100]
    text = (ROOT / "accelerate_configs" / f"{name}.yaml").read_text()
    assert [found.verdict for found in check(path, text, *cards)] == ["PASS"]


@pytest.mark.gloo
@pytest.mark.parametrize(
    ("text", "started"),
    [
        ("distributed_type: MULTI_CPU\nnum_processes: 2\nuse_cpu: true\nmixed_precision: 'no'", 1),
        ("distributed_type: 'NO'\nnum_processes: 2\nmixed_precision: 'no'", 1),
        ("distributed_type: MULTI_GPU\nnum_processes: 2\nuse_cpu: true\nmixed_precision: no", 0),
    ],
)
def test_accelerate_does_with_them_what_is_said(path: Path, text: str, started: int) -> None:
    path.write_text(text)
    script = path.with_name("script.py")
    script.write_text("print('a process')")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(path), str(script)]
    env = {name: value for name, value in os.environ.items() if not name.startswith("ACCELERATE_")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=env)
    assert done.stdout.count("a process") == started
    assert (done.returncode == 0) == bool(started)
