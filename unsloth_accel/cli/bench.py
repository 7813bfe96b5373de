"""`unsloth-accel bench`: how fast the same rows are trained on this machine, with and without this package."""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from ..bench.comparison import Comparison

CONTENDERS = ("varlen", "keep", "auto")
TIMEOUT_SECONDS = 600


def add_parser(subparsers: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds `bench`."""
    parser = subparsers.add_parser("bench", help="compare with plain Unsloth on this machine, in under 10 minutes")
    parser.add_argument(
        "--out", metavar="FILE", type=Path, help="append the results to a file, a JSON line for each run"
    )
    parser.set_defaults(run=run_bench)


def run_bench(args: argparse.Namespace) -> int:
    """Trains a model of random weights on all GPUs, or on two CPU ranks, and prints the table."""
    import torch

    from ..bench.compare import compare
    from ..bench.table import tables
    from ..imports import cpu_was_asked_for

    gpus = 0 if cpu_was_asked_for() else torch.cuda.device_count()
    size = "1b" if gpus else "tiny"
    with tempfile.TemporaryDirectory() as folder:
        model = f"{folder}/{size}"
        # In a process of its own, so that this one keeps no memory of a GPU.
        subprocess.run([sys.executable, "-m", "unsloth_accel.bench.random_llama", size, model], check=True)
        comparison = _on_gpus(model) if gpus else _on_cpu(model)
        results = compare(comparison, gpus or 2, on_cpu=not gpus, out=args.out, timeout=TIMEOUT_SECONDS)
    print(tables(results))
    return 0


def _on_gpus(model: str) -> "Comparison":
    """What Unsloth's notebooks do: 2 rows of uneven length in each of 4 micro-batches."""
    from ..bench.comparison import Comparison
    from ..bench.workload import Workload

    return Comparison(model=model, works=(Workload(2, 4, "lognormal"),), contenders=CONTENDERS)


def _on_cpu(model: str) -> "Comparison":
    """The same in small, padded, because Unsloth's CPU backend knows no other batches."""
    from ..bench.comparison import Comparison
    from ..bench.workload import Workload

    work = Workload(2, 4, "lognormal", "padded")
    return Comparison(model=model, works=(work,), contenders=CONTENDERS, warmup=2, steps=4, tuning=4, sequence=256)
