"""A real launch: ranks that find each other, an all-reduce, its result and its bandwidth."""

import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

from .finding import Finding
from .survey import NotAnswered, Survey, unanswered


CHECK = "all-reduce"
TIMEOUT_SECONDS = 180.0
FLOATS = 16 * 2**20  # 64 MiB, the size of the chunks in which gradients are averaged
REPEATS = 5
# A link below that, in bytes a second, makes the 100 MiB of a 3b model's adapters take a tenth of a second or more.
SLOW = 1e9


def check_all_reduce(survey: Survey) -> Iterator[Finding]:
    """Starts one rank a GPU, or two on the CPU, as `accelerate launch` does, and lets them add numbers."""
    try:
        cards = len(survey.answer("gpus"))
    except NotAnswered as reason:
        yield unanswered(CHECK, reason)
        return
    if cards == 1:
        yield Finding(CHECK, "SKIP", "one GPU, so there is nobody to talk to")
        return
    yield _launch(cards)


def _launch(cards: int) -> Finding:
    from ..launch import LaunchError, launch_ddp_training

    config = "ddp" if cards else "cpu_gloo"
    try:
        with redirect_stdout(StringIO()):
            found = launch_ddp_training(measure, config, timeout=TIMEOUT_SECONDS)
    except LaunchError as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        return Finding(CHECK, "FAIL", f"{lines[0]} {lines[-1]}", f"NCCL_DEBUG=INFO {_command(config)}")
    rate = f"{found['bytes_per_second'] / 1e9:.1f} GB/s of bus bandwidth"
    message = f"{found['ranks']} ranks through `accelerate launch` and {found['backend']}, {rate}"
    if cards and found["bytes_per_second"] < SLOW:
        return Finding(CHECK, "WARN", message, f"nvidia-smi topo -m; NCCL_DEBUG=INFO {_command(config)}")
    return Finding(CHECK, "PASS", message)


def _command(config: str) -> str:
    return f'accelerate launch --config_file "$(unsloth-accel config path {config})" --module {__name__}'


def measure() -> dict[str, Any]:
    """What each rank runs.

    Returns:
        `dict[str, Any]`: `ranks`, `backend` and `bytes_per_second`: the bus bandwidth, `2 (W - 1) / W` times the bytes
        divided by the time (https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md).

    Raises:
        RuntimeError: If the ranks are not one group, or the sum is wrong.
    """
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available())  # which the launcher does not pass on
    ranks = int(state.num_processes)
    if ranks == 1:
        raise RuntimeError("the launched ranks do not know of each other: Accelerate sees one process")
    seconds = []
    for _ in range(REPEATS + 1):
        numbers = torch.full((FLOATS,), float(state.process_index + 1), device=state.device)
        _wait(state.device)
        began = time.perf_counter()
        torch.distributed.all_reduce(numbers)
        _wait(state.device)
        seconds.append(time.perf_counter() - began)
        if not bool((numbers == ranks * (ranks + 1) / 2).all()):
            raise RuntimeError(f"the sum over {ranks} ranks is wrong: {numbers.unique().tolist()[:5]}")
    moved = 2 * (ranks - 1) / ranks * FLOATS * 4
    rate = moved / statistics.median(seconds[1:])  # the first one makes the connections
    return {"ranks": ranks, "backend": torch.distributed.get_backend(), "bytes_per_second": rate}


def _wait(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    sys.stdout.write(f"{measure()}\n")
