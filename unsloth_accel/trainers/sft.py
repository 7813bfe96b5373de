"""The drop-in for `trl.SFTTrainer`. Importing this file imports unsloth, mends its loading, and imports trl."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ..ddp.reports import StepMember
from ..fixes import apply_loading_fixes
from ..imports import load_unsloth
from .mixin import UnslothAcceleratedTrainerMixin
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

    def _step_members(self) -> Iterator[StepMember]:
        yield from super()._step_members()
        self._sft_metrics = SFTMetrics(self, self.args.gradient_accumulation_steps)
        yield self._sft_metrics

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
        if metrics is None or not stays_local or metrics.is_full:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # type: ignore[no-untyped-call]
        counted = self._total_train_tokens
        with self._metrics_stay_local():
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # type: ignore[no-untyped-call]
        metrics.note_micro_batch(inputs.get("labels"), self._total_train_tokens - counted)
        return loss

    @contextmanager
    def _metrics_stay_local(self) -> Iterator[None]:
        self.accelerator.gather_for_metrics = lambda value, *_, **__: value
        try:
            yield
        finally:
            del self.accelerator.gather_for_metrics
