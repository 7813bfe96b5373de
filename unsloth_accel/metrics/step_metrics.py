"""Follows each optimizer step of a trainer, and tells it in the log and in `metrics.jsonl`."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..ddp.reports import Action, RankReport
from ..ranks.environment import is_main_process
from ..recovery.facts import global_batch, versions
from .event_file import EventFile
from .utilization import Utilization
from .window import StepFacts, Window


FILE_NAME = "metrics.jsonl"


class StepMetrics:
    """A member of the run that reports nothing of its own: what the others report says how the ranks did.

    A step ends when its reports have arrived, which the trainer waits for anyway, so no clock waits for the GPU.

    Args:
        trainer (`transformers.Trainer`): One that trains on several ranks, with its state for this run.
        gradient_sync (`str`): How its gradients are averaged.
        plan (`str` or `StepPlan`): How its steps are computed.
    """

    columns: tuple[str, ...] = ()

    def __init__(self, trainer: Any, gradient_sync: str, plan: Any) -> None:
        self._trainer = trainer
        self._utilization = Utilization.of_trainer(trainer)
        self._window = Window()
        self._began: float | None = None
        self._paused = 0.0
        self._step, self._recomputed_share = 0, 0.0
        self._file = EventFile(Path(trainer.args.output_dir) / FILE_NAME) if is_main_process() else None
        self.record("start", **_about(trainer), gradient_sync=gradient_sync, plan=_as_fields(plan))

    def close(self) -> None:
        """Ends the file."""
        if self._file is not None:
            self._file.close()

    def begin_step(self) -> None:
        """Starts the clock at the first step; each later one begins where the one before ended."""
        if self._began is None:
            self._began = time.perf_counter()
            self._paused = 0.0  # by an evaluation before the first step (`eval_on_start`)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What runs inside, such as an evaluation, does not count for the step."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - began

    # The member of the run

    def report(self) -> Mapping[str, float | Tensor]:
        """Nothing; notes which step it is, and how it was computed."""
        self._step = self._trainer.state.global_step + 1
        if self._utilization is not None:
            self._recomputed_share = self._utilization.recomputed_share()
        return {}

    def decide(self, ranks: Sequence[RankReport]) -> Action | None:
        """Every rank takes in what all have reported; the main process writes it down."""
        return partial(self._take_in, ranks)

    def _take_in(self, ranks: Sequence[RankReport]) -> None:
        facts = self._facts(ranks, self._end_step())
        self._window.steps.append(facts)
        if self._file is not None:
            self._file.write("step", self._step, vars(facts))

    def _end_step(self) -> float:
        """How long the step took."""
        assert self._began is not None, "a step has begun"
        now = time.perf_counter()
        seconds = now - self._began - self._paused
        self._began, self._paused = now, 0.0
        return seconds

    def _facts(self, ranks: Sequence[RankReport], seconds: float) -> StepFacts:
        tokens = [report.values["tokens"] for report in ranks]
        computed = [report.values["computed_tokens"] for report in ranks]
        mfu = hfu = None
        if self._utilization is not None and any(tokens):
            possible = seconds * self._utilization.peak
            mfu = self._utilization.model_flops(sum(tokens)) / possible
            hfu = self._utilization.hardware_flops(sum(computed), self._recomputed_share) / possible
        waits, memory = [report.wait_seconds for report in ranks], [report.peak_memory_gib for report in ranks]
        return StepFacts(seconds, tokens, computed, waits, memory, mfu, hfu)

    # Log and file

    def log(self, log: Callable[[], None], logs: dict[str, float]) -> None:
        """Lets the trainer log, with the averages since the last time if it logs of training.

        Args:
            log (`Callable`): The trainer's own `log` of `logs`.
            logs (`dict[str, float]`): What it logs; changed here.
        """
        if "loss" in logs:
            logs.update(self._window.averages())
            self._window = self._window.next()
        history = self._trainer.state.log_history
        before = len(history)
        log()
        for entry in history[before:]:
            self.record("log", logs={name: value for name, value in entry.items() if name != "step"})

    def record(self, event: str, **fields: Any) -> None:
        """Writes an event of the step that ended last, on the main process."""
        if self._file is not None:
            self._file.write(event, self._trainer.state.global_step, fields)


def _about(trainer: Any) -> dict[str, Any]:
    """What the run is, for the head of the file."""
    arguments, device = trainer.args, trainer.args.device
    config = getattr(trainer.model, "config", None)  # a model of one's own has none
    return {
        "world_size": arguments.world_size,
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "model": getattr(config, "name_or_path", "") or type(trainer.model).__name__,
        "trainer": type(trainer).__name__,
        "versions": versions(),
        "global_batch": global_batch(arguments),
        "max_steps": trainer.state.max_steps,
    }


def _as_fields(plan: Any) -> Any:
    return asdict(plan) if is_dataclass(plan) and not isinstance(plan, type) else plan
