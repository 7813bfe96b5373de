"""Runs a comparison: a launch for each library, in which its contenders alternate."""

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from ..errors import ConfigurationError
from ..launch import launch_ddp_training
from .comparison import Comparison
from .contenders import CONTENDERS, check
from .environment import environment
from .ranks import measure


_ON_CPU = {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": "-1"}
# Preparing a few hundred rows in worker processes takes seconds in each run, and is not what is compared.
_IN_PROCESS = {"UNSLOTH_DATASET_NUM_PROC": "0", "TOKENIZERS_PARALLELISM": "false"}


def compare(
    comparison: Comparison,
    num_processes: int,
    on_cpu: bool = False,
    cache: Path | None = None,
    out: Path | None = None,
    timeout: float | None = None,
) -> list[dict[str, Any]]:
    """Trains all of it; rank 0 prints a `RESULT` line of JSON after each run.

    Contenders of one library alternate in one launch. Libraries come one after the other, a launch each.

    Args:
        comparison (`Comparison`): What to train.
        num_processes (`int`): How many ranks.
        on_cpu (`bool`, *optional*, defaults to `False`): Whether to leave the GPUs alone.
        cache (`Path`, *optional*): Where compiled code is kept. `None`: an empty folder that is removed at the end.
        out (`Path`, *optional*): A file to which each result is appended, too.
        timeout (`float`, *optional*): Seconds after which a launch is stopped.

    Returns:
        `list[dict]`: The results.

    Raises:
        ConfigurationError: If a contender is not known, or can not be; or a CPU is to be a smaller card, or to train
            rows with images.
        LaunchError: If a rank failed, or `timeout` passed.
    """
    check(comparison.contenders, on_cpu)
    if on_cpu and comparison.card_gib is not None:
        raise ConfigurationError("`card_gib` is what a GPU has. Leave it out on the CPU.")
    if on_cpu and comparison.has_images:
        raise ConfigurationError(
            "`works` has rows with images, which Unsloth trains on GPUs only. Leave `on_cpu` out."
        )
    config = "cpu_gloo" if on_cpu else "single" if num_processes == 1 else "ddp"
    target = None if out is None else str(out.resolve())
    call = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
    results: list[dict[str, Any]] = []
    with _compiling_into(cache) as state, environment({**_IN_PROCESS, **(_ON_CPU if on_cpu else {})}):
        for names in by_library(comparison.contenders):
            block = replace(comparison, contenders=names)
            results += launch_ddp_training(
                measure,
                config,
                (block, {"call": call, "cache": state}, time.time(), target),
                num_processes=num_processes,
                timeout=timeout,
            )
    return results


def by_library(names: Sequence[str]) -> list[tuple[str, ...]]:
    """The contenders of each library, which share a launch.

    Args:
        names (`Sequence[str]`): Keys of `CONTENDERS`.

    Returns:
        `list[tuple[str, ...]]`: In the order in which the libraries come.
    """
    libraries = list(dict.fromkeys(CONTENDERS[name].library for name in names))
    ordered = sorted(names, key=lambda name: libraries.index(CONTENDERS[name].library))
    return [tuple(block) for _, block in groupby(ordered, key=lambda name: CONTENDERS[name].library)]


@contextmanager
def _compiling_into(cache: Path | None) -> Iterator[str]:
    """Has all compilers keep their code in a folder; says whether it was `"empty"` or `"filled"`."""
    with tempfile.TemporaryDirectory() as empty:
        folder = Path(empty) if cache is None else cache.resolve()
        filled = folder.is_dir() and any(folder.iterdir())
        variables = {"UNSLOTH_COMPILE_LOCATION": "unsloth", "TORCHINDUCTOR_CACHE_DIR": "inductor"}
        variables["TRITON_CACHE_DIR"] = "triton"
        with environment({name: str(folder / part) for name, part in variables.items()}):
            yield "filled" if filled else "empty"
