"""The drop-in for `trl.SFTTrainer`. Importing this file imports unsloth, mends its loading, and imports trl."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..ddp.reports import RankReport, StepMember
from ..fixes import apply_loading_fixes
from ..imports import load_unsloth
from ..patching import Undo, replace_attribute
from ..ranks.logging import log_once
from ..step_plan import StepPlanRecord
from .evaluation import TokenWeightedMeans
from .mixin import UnslothAcceleratedTrainerMixin
from .plan_choice import AS_GIVEN, is_searched, plan_asked_for
from .plan_search import PlanSearch
from .planned_steps import PlannedSteps, balance_rows
from .sft_metrics import SFTMetrics, remember_metrics


load_unsloth()
apply_loading_fixes()  # a script loads its model after this and before it makes a trainer
import trl  # after Unsloth, which rebinds trl.SFTTrainer


class UnslothAcceleratedSFTTrainer(UnslothAcceleratedTrainerMixin, trl.SFTTrainer):
    """Drop-in for `trl.SFTTrainer` that trains Unsloth's models on many ranks.

    Takes the arguments of `trl.SFTTrainer`, and `plugin`. Launched with `accelerate launch` it trains the trajectory
    of one GPU at the same global batch; on one process it is `trl.SFTTrainer` as Unsloth patches it.

    TRL gathers its metrics from all ranks in every micro-batch. Here they stay on the rank until the step's one
    reduction, and what is logged is what TRL would log.

    Args:
        plugin ([`UnslothAcceleratorPlugin`], *optional*):
            The choices for data-parallel training. Defaults to one read from the environment.

    Example:

    ```python
    >>> from unsloth_accel import UnslothAcceleratedSFTTrainer

    >>> trainer = UnslothAcceleratedSFTTrainer(model=model, args=SFTConfig("out"), train_dataset=rows)
    >>> trainer.train()
    ```
    """

    _sft_metrics: SFTMetrics | None = None
    _planned: PlannedSteps | None = None
    _search: PlanSearch | None = None
    _weighed: TokenWeightedMeans | None = None  # while an evaluation runs
    _can_plan_steps = True
    _steps_alone = False  # whether a step has begun whose reports nobody else hears

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        asked = plan_asked_for(self)
        if asked is not None and self._loss_is_ours():
            self._planned = PlannedSteps(self, asked, splits=self.plugin.on_oom == "split")
            self._planned.remember_metrics = self._remember_metrics
            if is_searched(self):
                assert self.plugin.memory_margin is not None, "has a default"
                self._search = PlanSearch(self, self._planned, self.plugin.memory_margin)

    @property
    def step_plan(self) -> StepPlanRecord:
        """How the steps are computed, and why; while a plan is looked for, what is tried."""
        return AS_GIVEN if self._planned is None else self._planned.record

    def _loss_is_ours(self) -> bool:
        """Whether the loss is TRL's sum over tokens, computed in a `training_step` of transformers; logs if not."""
        replaced = self._replaced()
        if replaced:
            log_once("step plan: not used, because the trainer has %s of its own", " and ".join(replaced))
        return not replaced

    def _replaced(self) -> list[str]:
        ours = UnslothAcceleratedSFTTrainer
        replaced = [
            name for name in ("compute_loss", "training_step") if getattr(type(self), name) is not getattr(ours, name)
        ]
        if self.compute_loss_func is not None:
            replaced.append("compute_loss_func")
        if getattr(self, "aux_loss_enabled", False):
            replaced.append("the auxiliary loss of its experts")
        return replaced

    def get_train_dataloader(self) -> Any:
        """As in transformers, with the rows of each step dealt to the ranks as the plan says."""
        dataloader = super().get_train_dataloader()
        return dataloader if self._planned is None else self._planned.balance(dataloader)

    # Evaluation

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """As in transformers, with each row on one rank alone, where only the loss is wanted."""
        dataloader = super().get_eval_dataloader(eval_dataset)
        if self.gradient_sync is None or self.compute_metrics is not None or self._replaced():
            return dataloader
        dealt, reason = balance_rows(self, dataloader, dataloader.dataset, accumulation=1, lengths_matter=False)
        if reason:
            log_once("evaluation: where rows do not divide over the ranks, some count twice: %s", reason)
        return dealt

    def _evaluation_is_ours(self) -> bool:
        """Whether it is that of several ranks, or of one with a plan, and the loss that of TRL."""
        return (self.gradient_sync is not None or self._planned is not None) and not self._replaced()

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """As in transformers; if only the loss is wanted, it is the mean over all labelled tokens of all ranks.

        Predictions are wanted in the order of the rows, and so that all ranks have as many some rows are predicted
        twice. transformers leaves them out at the end, also of the loss, which is its own then.
        """
        loop = partial(
            super().evaluation_loop, dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
        )
        if not self._evaluation_is_ours():
            return loop()
        self._weighed = TokenWeightedMeans(self, splits=self.plugin.on_oom == "split")
        try:
            output = loop()
            loss = self._weighed.of_all_ranks()
            if prediction_loss_only and loss is not None:
                assert output.metrics is not None, "transformers puts them there"
                output.metrics[f"{metric_key_prefix}_loss"] = loss
        finally:
            self._weighed = None
        return output

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> Any:
        """As in TRL; a batch that does not fit into memory is computed in parts."""
        predict = super().prediction_step
        if self._weighed is None:
            return predict(model, inputs, prediction_loss_only, ignore_keys)
        inputs = self._prepare_inputs(inputs)
        with self._metrics_stay_local():
            return self._weighed.step(
                lambda batch: predict(model, dict(batch), prediction_loss_only, ignore_keys), inputs
            )

    # Steps

    def _prepare_for_training(self, max_steps: int, *args: Any, **kwargs: Any) -> Any:
        prepared = super()._prepare_for_training(max_steps, *args, **kwargs)
        if self._planned is not None:
            run = self._run
            alone = self.accelerator.num_processes == 1
            self._planned.reduce_with(run.reduce if run and run.deferred else (lambda: None) if alone else None)
            self._planned.keep_layers()
            self._steps_alone = False
        if self._search is not None:
            self._search.start(max_steps)
        elif self._planned is not None:
            log_once("step plan: %s", self.step_plan)
        return prepared

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers."""
        try:
            return super().train(*args, **kwargs)
        finally:
            if self._planned is not None:
                self._planned.recompute_layers()

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers."""
        if self._steps_alone:
            self._settle_alone()
        batches, num_items_in_batch = super().get_batch_samples(*args, **kwargs)
        if not batches:  # nothing is left to train
            return batches, num_items_in_batch
        if self._planned is not None:
            self._planned.begin_step(batches, num_items_in_batch)
            self._tokens.computed = self._planned.computed_tokens
            self._steps_alone = self.accelerator.num_processes == 1
        if self._search is not None:
            self._search.begin_step(batches)
        return batches, num_items_in_batch

    def _settle_alone(self) -> None:
        """On one rank nothing is exchanged: it concludes from its own report what several would from theirs."""
        if self._search is not None and not self._search.is_done and self.args.device.type == "cuda":
            torch.cuda.synchronize(self.args.device)  # the times of the last step are read
        members = list(self._plan_members())
        values = {name: float(value) for member in members for name, value in member.report().items()}
        for action in [member.decide([RankReport(False, 0.0, 0.0, 0.0, values)]) for member in members]:
            if action is not None:
                action()

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """As in transformers; with a plan, what is computed when is up to it."""
        if self._planned is None:
            return super().training_step(model, inputs, num_items_in_batch)
        return self._planned.training_step(super().training_step, model, inputs, num_items_in_batch)

    def _plan_in_words(self) -> Any:
        return "auto" if self._search is not None else "keep" if self._planned is None else self.step_plan.plan

    def _step_members(self) -> Iterator[StepMember]:
        yield from super()._step_members()
        self._sft_metrics = SFTMetrics(self, self.args.gradient_accumulation_steps)
        yield self._sft_metrics
        yield from self._plan_members()

    def _plan_members(self) -> Iterator[StepMember]:
        if self._planned is not None:
            yield self._planned
        if self._search is not None:
            yield self._search

    def _begin_step(self, batches: list[Any]) -> None:
        super()._begin_step(batches)
        assert self._sft_metrics is not None, "made when the run started"
        self._sft_metrics.begin_step()

    def _micro_batches_are_local(self) -> bool:
        ours = type(self).compute_loss is UnslothAcceleratedSFTTrainer.compute_loss
        gathers = self.args.include_num_input_tokens_seen != "no" or self.compute_loss_func is not None
        return ours and not gathers

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """As in TRL, but while training its metrics are not gathered from the other ranks."""
        metrics = self._sft_metrics
        stays_local = self._run is not None and model.training and self.compute_loss_func is None
        # What is computed again after an error is noted again, so with a plan a step may have more than its slots.
        if metrics is None or not stays_local or (metrics.is_full and self._planned is None):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # type: ignore[no-untyped-call]
        counted = self._total_train_tokens
        with self._metrics_stay_local():
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # type: ignore[no-untyped-call]
        metrics.note_micro_batch(inputs.get("labels"), self._total_train_tokens - counted)
        return loss

    def _remember_metrics(self) -> Undo:
        """A function that takes back what is counted and noted from here on, of what is then computed again."""
        take_back, metrics = remember_metrics(self), self._sft_metrics
        forget = metrics.remember() if metrics is not None else None

        def undo() -> None:
            take_back()
            if forget is not None:
                forget()

        return undo

    @contextmanager
    def _metrics_stay_local(self) -> Iterator[None]:
        undo = replace_attribute(self.accelerator, "gather_for_metrics", lambda value, *_, **__: value)
        try:
            yield
        finally:
            undo()
