"""Finds the step plan of a trainer while it trains."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from functools import partial
from typing import Any

from torch import Tensor

from ..ddp.reports import Action, RankReport, Stopwatch
from ..plan.layers import checkpointed_layers
from ..plan.pieces import tokens_together
from ..plan.probe import MemoryProbe, ProbeFigures, can_measure
from ..plan.tuning import PlanTuner
from ..ranks.logging import log_once
from .planned_steps import PlannedSteps, ran_out_of_memory
from .tokens import count_computed_tokens


_FIGURES = tuple(field.name for field in fields(ProbeFigures))


class PlanSearch:
    """Measures the first steps, and lets [`PlannedSteps`] follow what all ranks conclude from them.

    Args:
        trainer (`trl.SFTTrainer`): Whose steps.
        planned ([`PlannedSteps`]): What computes them.
        margin (`float`): The share of the card to leave alone.
    """

    columns: tuple[str, ...] = ("plan_ms", *(f"plan_{name}" for name in _FIGURES))

    def __init__(self, trainer: Any, planned: PlannedSteps, margin: float) -> None:
        self._trainer, self._planned, self._margin = trainer, planned, margin
        self._tuner: PlanTuner | None = None  # while a plan is looked for
        self._clock = Stopwatch(trainer.args.device)
        self._milliseconds = 0.0
        self._batches: list[int] = []
        self._together_tokens = 0
        self._probe: MemoryProbe | None = None
        planned.on_compute, planned.on_computed = self._clock.start, self._clock.stop

    def start(self, steps: int) -> None:
        """Begins to look for a plan.

        Args:
            steps (`int`): The optimizer steps of the run.
        """
        arguments, plan = self._trainer.args, self._planned.record.plan
        self._tuner = tuner = PlanTuner(
            rows=arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps,
            micro_batch_rows=arguments.per_device_train_batch_size,
            longest_row=arguments.max_length,
            layers=len(checkpointed_layers(self._trainer.model)),
            balance=plan.balance,
            steps=steps,
        )
        if not can_measure(arguments.device):
            tuner.use_unlimited()
        self._follow(tuner)

    def _follow(self, tuner: PlanTuner) -> None:
        self._planned.follow(tuner.record)
        if tuner.is_done:
            self._tuner = None
            log_once("step plan: %s", tuner.record)
            self._trainer.record_event("plan", plan=asdict(tuner.record))

    @property
    def is_done(self) -> bool:
        """Whether the plan is found."""
        return self._tuner is None

    def begin_step(self, batches: Sequence[Any]) -> None:
        """Notes what the step before took, and begins to measure memory where it is time."""
        if self._tuner is None:
            return
        self._milliseconds = 1000 * self._clock.seconds() if self._batches else 0.0
        self._batches = [count_computed_tokens(batch) for batch in batches]
        self._together_tokens = tokens_together(batches) if self._planned.together else 0
        if self._tuner.measures_memory:
            self._start_probe()

    def _start_probe(self) -> None:
        model, device = self._trainer.model, self._trainer.args.device
        layers = checkpointed_layers(model)
        gradients = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
        if self._in_buckets():  # which are there since DDP was built
            gradients = 0
        self._planned.keep_layers(1)
        self._probe = MemoryProbe(device, self._margin, gradients, layers[-1] if layers else None)

    def _in_buckets(self) -> bool:
        choice, handler = self._trainer.gradient_sync, self._trainer.accelerator.ddp_handler
        return choice is not None and choice.mode == "overlapped" and bool(handler.gradient_as_bucket_view)

    def report(self) -> Mapping[str, float | Tensor]:
        """What this rank has measured; called when the step's gradients are there."""
        figures = ProbeFigures(step_tokens=sum(self._batches))
        if self._probe is not None:
            figures = self._probe.finish(self._batches)
            self._planned.keep_layers()
            self._probe = None
        figures = replace(figures, together=self._planned.together, together_tokens=self._together_tokens)
        return {"plan_ms": self._milliseconds, **{f"plan_{name}": value for name, value in asdict(figures).items()}}

    def decide(self, ranks: Sequence[RankReport]) -> Action | None:
        """The plan for the next step, until one is found or a rank has run out of memory."""
        return None if self._tuner is None else partial(self._settle, self._tuner, ranks)

    def _settle(self, tuner: PlanTuner, ranks: Sequence[RankReport]) -> None:
        if any(map(ran_out_of_memory, ranks)):
            self._tuner = None  # `PlannedSteps` computes the next step with less
            return
        figures = [ProbeFigures(**{name: one.values[f"plan_{name}"] for name in _FIGURES}) for one in ranks]
        tuner.settle(figures, [one.values["plan_ms"] for one in ranks])
        self._follow(tuner)
