"""What ends the first attempt of a run under `--max_restarts`: `restarts.py OUT CASE`. Torch and Accelerate only."""

import os
import signal
import sys

import torch
from start import RANK, write_result

from unsloth_accel import UnslothAccelerator, UnslothAcceleratorPlugin


OUT, CASE = sys.argv[1:]
ATTEMPT = int(os.environ["TORCHELASTIC_RESTART_COUNT"])


def killed():
    """Rank 1 dies in the first attempt, when the ranks know each other's addresses."""
    accelerator = UnslothAccelerator()
    found = accelerator.reduce(torch.ones(1)).item()
    if ATTEMPT == 0 and RANK == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    accelerator.wait_for_everyone()
    write_result(OUT, {"attempt": ATTEMPT, "sum": found})


def wrong_argument():
    UnslothAccelerator()
    with open(f"{OUT}.slow", "a") as log:
        log.write(f"rank {RANK} loads a model\n")
    UnslothAcceleratorPlugin(gradient_sync="sometimes")


if __name__ == "__main__":
    globals()[CASE]()
