"""The drop-in for `trl.SFTTrainer`. Importing this file imports unsloth, mends its loading, and imports trl."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ..ddp.reports import StepMember
from ..fixes import apply_loading_fixes
from ..imports import load_unsloth
from ..patching import Undo, replace_attribute
from ..ranks.logging import log_once
from ..step_plan import StepPlan
from .mixin import UnslothAcceleratedTrainerMixin
from .planned_steps import PlannedSteps
from .sft_metrics import SFTMetrics


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
    _undo_layers: Undo = staticmethod(lambda: None)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if isinstance(self.plugin.plan, StepPlan) and self._loss_is_ours():
            self._planned = PlannedSteps(self, self.plugin.plan)

    def _loss_is_ours(self) -> bool:
        """Whether the loss is TRL's sum over tokens, computed in a `training_step` of transformers."""
        ours = UnslothAcceleratedSFTTrainer
        replaced = [
            name for name in ("compute_loss", "training_step") if getattr(type(self), name) is not getattr(ours, name)
        ]
        if self.compute_loss_func is not None:
            replaced.append("compute_loss_func")
        if getattr(self, "aux_loss_enabled", False):
            replaced.append("the auxiliary loss of its experts")
        if replaced:
            log_once("step plan: not used, because the trainer has %s of its own", " and ".join(replaced))
        return not replaced

    def get_train_dataloader(self) -> Any:
        """As in transformers, with the rows of each step dealt to the ranks as the plan says."""
        dataloader = super().get_train_dataloader()
        return dataloader if self._planned is None else self._planned.balance(dataloader)

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        prepared = super()._prepare_for_training(*args, **kwargs)
        if self._planned is not None:
            self._undo_layers = self._planned.keep_layers()
            run = self._run
            alone = self.accelerator.num_processes == 1
            self._planned.reduce_with(run.reduce if run and run.deferred else (lambda: None) if alone else None)
        return prepared

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers."""
        try:
            return super().train(*args, **kwargs)
        finally:
            self._undo_layers()

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers."""
        batches, num_items_in_batch = super().get_batch_samples(*args, **kwargs)
        if self._planned is not None:
            self._planned.begin_step(batches, num_items_in_batch)
        return batches, num_items_in_batch

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """As in transformers; with a plan, what is computed when is up to it."""
        if self._planned is None:
            return super().training_step(model, inputs, num_items_in_batch)
        return self._planned.training_step(super().training_step, model, inputs, num_items_in_batch)

    def _step_members(self) -> Iterator[StepMember]:
        yield from super()._step_members()
        self._sft_metrics = SFTMetrics(self, self.args.gradient_accumulation_steps)
        yield self._sft_metrics
        if self._planned is not None:
            yield self._planned

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

    @contextmanager
    def _metrics_stay_local(self) -> Iterator[None]:
        undo = replace_attribute(self.accelerator, "gather_for_metrics", lambda value, *_, **__: value)
        try:
            yield
        finally:
            undo()
