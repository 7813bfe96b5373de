"""Says how to use the GPUs that stay idle when a script runs in one process."""

import shlex
import sys
from collections.abc import Callable

from .environment import was_launched
from .gpu_config import gpu_config
from .logging import log_once


_said = False


def log_idle_gpus(num_gpus: int | None = None, config: Callable[[], str] = gpu_config) -> None:
    """Logs, once in a process that no launcher started, how many GPUs it leaves idle and the command for all.

    Args:
        num_gpus (`int`, *optional*): How many GPUs to use. Defaults to all that are visible.
        config (`Callable`, *optional*): Gives the short name of the launch config to name in the command.
    """
    import torch

    global _said
    if _said or was_launched():
        return
    gpus = torch.cuda.device_count()
    wanted = num_gpus or gpus
    if gpus > 1:
        command = _command(config(), wanted)
        log_once("one process uses one GPU, %d of %d stay idle. To use %d: %s", gpus - 1, gpus, wanted, command)
    elif gpus == 0:
        log_once("no GPU is visible: training runs on the CPU, in one process")
    _said = True


def _command(config: str, num_processes: int) -> str:
    """How to start again what runs now, on several GPUs."""
    if not hasattr(sys.modules["__main__"], "__file__"):  # a notebook or a prompt: there is nothing to start again
        return "put the training into a function and call `unsloth_accel.launch_ddp_training(function)`"
    rest = list(sys.orig_argv[1:])
    while rest and rest[0].startswith("-") and rest[0] != "-m":  # the interpreter's own options
        rest = rest[2 if rest[0] in ("-X", "-W") else 1 :]
    config_file = f'"$(unsloth-accel config path {config})"'
    return f"accelerate launch --config_file {config_file} --num_processes {num_processes} {shlex.join(rest)}"
