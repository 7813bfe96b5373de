"""Under plain `python` the GPUs that stay idle are named, with the command that would use them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness import ROOT
from unsloth_accel.ranks import idle_gpus


def test_the_command_that_uses_idle_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "train.py", raising=False)
    for ran, again in (
        (["-u", "-X", "dev", "train.py", "--lr", "1e-4"], "train.py --lr 1e-4"),
        (["-m", "unsloth_accel", "train.py"], "-m unsloth_accel train.py"),
    ):
        monkeypatch.setattr(sys, "orig_argv", ["python", *ran])
        command = idle_gpus._command("ddp", 4)
        config_file = '"$(unsloth-accel config path ddp)"'
        assert command == f"accelerate launch --config_file {config_file} --num_processes 4 {again}"
    monkeypatch.delattr(sys.modules["__main__"], "__file__")
    assert "launch_ddp_training" in idle_gpus._command("ddp", 4)


@pytest.mark.multigpu(gpus=2)
@pytest.mark.parametrize("how", ["hook", "drop-in"])
def test_plain_python_says_which_gpus_stay_idle(how: str, tiny_model: Path, tmp_path: Path) -> None:
    """Once, whether the script calls `enable_multi_gpu()` or makes the drop-in class."""
    script = ROOT / "tests" / "workers" / "idle_gpus.py"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, str(script), how, str(tiny_model), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180, check=False)

    assert done.returncode == 0, done.stderr
    (line,) = [line for line in (done.stdout + done.stderr).splitlines() if "stay idle" in line]
    assert line.endswith(f"{script} {how} {tiny_model} {tmp_path}")
    assert "accelerate launch --config_file" in line
