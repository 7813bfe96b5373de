"""What the workers share that train case after case, on one rank or several, and write a JSON line for each."""

import gc
import json
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from start import RANK, WORLD_SIZE, freeze_imports

from unsloth_accel.metrics.window import METRICS


ON_GPU = torch.cuda.is_available()
# TrainingArguments under which runs can be compared step by step.
COMPARABLE = {
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "optim": "adamw_torch",
    "logging_steps": 1,
    "report_to": "none",
    "seed": 1,
    "save_strategy": "no",
    "disable_tqdm": True,
    "use_cpu": not ON_GPU,
}
# On top of these, where weights are compared: a step moves them by 0.1 at most, the rate times the clipped norm, and
# the roundings of the weights themselves, 6e-8, are nothing against what is tolerated of that.
SGD = {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 1.0}


def of_all_ranks(value: Any) -> list[Any]:
    if WORLD_SIZE == 1:
        return [value]
    every = [None] * WORLD_SIZE
    dist.all_gather_object(every, value)
    return every


def between_ranks(weights: torch.Tensor) -> float:
    """The largest difference of any rank's weights, on the CPU, to this rank's."""
    return max((weights - other).abs().max().item() for other in of_all_ranks(weights))


def steps_logged(trainer: Any) -> list[dict[str, float]]:
    """What the trainer itself logged of each step, without what several ranks add: docs/metrics.md."""
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    return [{k: float(v) for k, v in entry.items() if k not in METRICS} for entry in logged]


def run_cases(train: Callable[[str, Path, dict[str, str]], dict[str, Any]]) -> None:
    """Reports what `train` returns for each case of the command line: `WORKER MODEL OUT key=value,... ...`.

    It gets the model's folder, one that it may write to, and the case's keys and values.
    """
    path, out, *cases = sys.argv[1:]
    for text in cases:
        case = dict(pair.split("=") for pair in text.split(",") if pair)
        result = {"case": text, "world_size": WORLD_SIZE}
        report(Path(out), result, partial(train, path, Path(out).with_suffix(".run"), case))


def report(out: Path, result: dict[str, Any], train: Callable[[], dict[str, Any]]) -> None:
    """Adds what `train()` returns to `result`, or its error, and adds that as a line to the file `out`, on rank 0.

    Another rank prints its error: rank 0 may wait for it, and the harness shows what each rank wrote.
    """
    freeze_imports()
    try:
        result |= train()
    except Exception as error:  # each case reports for itself; the test judges
        result |= {"error": f"{type(error).__name__}: {error}", "at": traceback.format_exc()}
        if RANK != 0:
            traceback.print_exc()
    if RANK == 0:
        with out.open("a") as file:
            file.write(json.dumps(result) + "\n")
    gc.collect()
    torch.cuda.empty_cache()
