"""Functions that `tests/launch/test_launcher.py` runs on ranks; plain torch, no Unsloth."""

import os
import signal
import sys
import time
from pathlib import Path


FOR_EVER = 3600  # no test waits so long


def sum_of_ranks(offset, *, scale=1):
    import torch
    from torch import distributed as dist

    dist.init_process_group("gloo")
    value = torch.tensor([float(dist.get_rank() + offset)])
    dist.all_reduce(value)
    print(f"rank {dist.get_rank()} of {dist.get_world_size()}")
    return {"sum": value.item() * scale, "world": dist.get_world_size()}


def leaves():
    sys.exit(0)


def rank_one_raises():
    sum_of_ranks(0)
    if os.environ["RANK"] == "1":
        raise KeyError("the row that rank 1 cannot read")
    time.sleep(FOR_EVER)


def rank_one_dies(how):
    import torch
    from torch import distributed as dist

    sum_of_ranks(0)
    if os.environ["RANK"] == "1":
        print("the last words of rank 1", file=sys.stderr)
        if how == "exit":
            os._exit(7)
        os.kill(os.getpid(), signal.SIGKILL)
    dist.all_reduce(torch.ones(1))  # fails here because the other end is gone: a consequence, not the cause


def bar_then_wait(folder):
    """Shows a progress bar, says that it is there, and waits; rank 1 ignores Ctrl-C, and takes SIGTERM over."""
    from tqdm import tqdm

    rank = os.environ["RANK"]
    if rank == "1":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    for _ in tqdm(range(3), desc=f"bar of rank {rank}", mininterval=0):
        pass
    try:
        written = Path(folder, f"writing_{rank}")
        written.write_text(str(os.getpid()))
        written.rename(Path(folder, f"pid_{rank}"))
        time.sleep(FOR_EVER)
    finally:
        Path(folder, f"left_{rank}").touch()
