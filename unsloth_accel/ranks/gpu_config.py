"""Which of the shipped launch configs suits the visible GPUs."""

import subprocess
import sys


# bf16 came with compute capability 8.0 (Ampere).
BF16_FROM = [8, 0]
_ASK = f"""
import torch
cards = range(torch.cuda.device_count())
print("ddp" if all(list(torch.cuda.get_device_capability(card)) >= {BF16_FROM} for card in cards) else "ddp_fp16")
"""


def gpu_config() -> str:
    """The short name: `"ddp"`, or `"ddp_fp16"` where a GPU computes no bf16, as T4, V100 and RTX 20.

    Asked in a process of its own, where GPUs are visible at all: a notebook that has initialized CUDA cannot fork.
    """
    import torch

    if torch.cuda.device_count() == 0:
        return "ddp"
    asked = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, text=True, timeout=120, check=True)
    return asked.stdout.split()[-1]
