"""What each rank of a comparison runs, and the lines that rank 0 prints."""

import gc
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch

from ..metrics.flops import TokenFlops
from ..metrics.peak_flops import peak_flops
from ..ranks.environment import is_main_process, local_rank, world_size
from ..step_plan import StepPlanRecord
from .comparison import Comparison
from .contenders import CONTENDERS, Contender, Library
from .models import Start, load, precision
from .workload import Workload


if TYPE_CHECKING:
    from .training import Run


def measure(comparison: Comparison, known: dict[str, Any], began: float, out: str | None) -> list[dict[str, Any]]:
    """Loads the model once, and lets its contenders train the workloads in turns (A B A B).

    Args:
        comparison (`Comparison`): What to train; all contenders are of one library.
        known (`dict`): What the launcher adds to each result.
        began (`float`): `time.time()` when this launch was started.
        out (`str`, *optional*): A file to which rank 0 appends each result.

    Returns:
        `list[dict]`: A result for each run.
    """
    if comparison.card_gib is not None:
        _hold_card(comparison.card_gib)
    runs = _Runs(comparison)
    described = _description(runs.model, comparison) | known | {"ready_s": round(time.time() - began, 1)}
    results: list[dict[str, Any]] = []
    for work, round_number, name in _turns(comparison):
        found, plan = runs.timed(name, work)
        what = {"work": str(work), "contender": name, "round": round_number, "plan": plan and str(plan)}
        results.append(what | found | _mfu(found, described) | described)
        _tell(results[-1], out)
    return results


class _Runs:
    """Loads a model and trains it again and again, each time from the same weights."""

    def __init__(self, comparison: Comparison) -> None:
        (library,) = _libraries(comparison)
        self._comparison = comparison
        self.model, self._tokenizer = load(library, comparison)
        self._start = Start(self.model)
        self._plans: dict[Workload, StepPlanRecord | None] = {}

    def timed(self, name: str, work: Workload) -> tuple[dict[str, Any], StepPlanRecord | None]:
        """The figures of a run, and the plan that was found for it, if the contender looks for one."""
        contender = CONTENDERS[name]
        if not contender.tunes:
            return self._train(contender, work, self._comparison).figures, None
        if work not in self._plans:
            tuning = replace(self._comparison, warmup=1, steps=self._comparison.tuning)
            self._plans[work] = self._train(contender, work, tuning).plan
        plan = self._plans[work]
        settled = replace(contender, plugin={"plan": plan}, tunes=False)
        return self._train(settled, work, self._comparison).figures, plan

    def _train(self, contender: Contender, work: Workload, settings: Comparison) -> "Run":
        from .training import train  # loads transformers, and must do so after Unsloth, if that is the library

        self._start.restore()
        done = train(contender, self.model, self._tokenizer, work, settings)
        gc.collect()  # a trainer holds itself, and with it the states of its optimizer
        return done


def _hold_card(gib: float) -> None:
    """From here on torch runs out of memory where a card of that size would."""
    whole = torch.cuda.get_device_properties(local_rank()).total_memory
    torch.cuda.set_per_process_memory_fraction(gib * 2**30 / whole, local_rank())


def _libraries(comparison: Comparison) -> set[Library]:
    return {CONTENDERS[name].library for name in comparison.contenders}


def _turns(comparison: Comparison) -> Iterator[tuple[Workload, int, str]]:
    for work in comparison.works:
        for round_number in range(1, comparison.rounds + 1):
            for name in comparison.contenders:
                yield work, round_number, name


def _description(model: Any, comparison: Comparison) -> dict[str, Any]:
    """Hardware, versions and settings: what each result says of its origin."""
    on_gpu = torch.cuda.is_available()
    return {
        "model": os.path.basename(comparison.model),
        "finetuning": comparison.finetuning,
        "lora_rank": None if comparison.finetuning == "full" else comparison.lora_rank,
        "sequence": comparison.sequence,
        "card_gib": comparison.card_gib,
        "warmup": comparison.warmup,
        "steps": comparison.steps,
        "world_size": world_size(),
        # The patches of a vision tower are no tokens.
        "flops_per_token": None if comparison.has_images else TokenFlops.from_model(model).model,
        "compiled": os.environ.get("UNSLOTH_COMPILE_DISABLE", "0") != "1",
        "device": torch.cuda.get_device_name() if on_gpu else f"{os.cpu_count()} CPU cores",
        "cuda": torch.version.cuda if on_gpu else None,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in _packages(comparison)},
    }


def _packages(comparison: Comparison) -> list[str]:
    """What takes part in a launch."""
    (library,) = _libraries(comparison)
    more = {"unsloth": ["unsloth", "unsloth_zoo"], "trl": [], "liger": ["liger_kernel"]}[library]
    quantised = ["bitsandbytes"] if comparison.finetuning == "qlora" else []
    return ["torch", "transformers", "accelerate", "trl", "peft", *more, *quantised]


def _mfu(found: dict[str, Any], described: dict[str, Any]) -> dict[str, float | None]:
    """The FLOPs of the real tokens, without recomputation, as a share of the GPUs' peak; None where that is not known.

    Chowdhery et al. 2022, "PaLM", https://arxiv.org/abs/2204.02311, appendix B, without the products of attention.
    """
    peak = peak_flops(described["device"], bf16=precision() == torch.bfloat16)
    if peak is None or described["flops_per_token"] is None:
        return {"mfu": None}
    flops = found["tokens_per_s"] * described["flops_per_token"]
    return {"mfu": round(flops / described["world_size"] / peak, 4)}


def _tell(result: dict[str, Any], out: str | None) -> None:
    if not is_main_process():
        return
    line = json.dumps(result)
    sys.stdout.write(f"RESULT {line}\n")
    sys.stdout.flush()
    if out is not None:
        with open(out, "a", encoding="utf-8") as file:
            file.write(line + "\n")
