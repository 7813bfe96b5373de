"""The drop-in for `trl.SFTTrainer`. Importing this file imports unsloth, mends its loading, and imports trl."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ..ddp.reduction import RankReport
from ..fixes import apply_loading_fixes
from ..imports import load_unsloth
from .mixin import UnslothAcceleratedTrainerMixin


load_unsloth()
apply_loading_fixes()  # a script loads its model after this and before it makes a trainer
import trl  # after Unsloth, which rebinds trl.SFTTrainer


# What TRL's SFTTrainer logs per micro-batch: means over the labelled tokens of all ranks, and a mean over the ranks.
_TOKEN_MEANS = ("entropy", "mean_token_accuracy")
_RANK_MEANS = ("aux_loss",)
# Numbers of one micro-batch in a rank's row: its labelled tokens, then one for each metric.
_MICRO_BATCH_NUMBERS = 1 + len(_TOKEN_MEANS) + len(_RANK_MEANS)


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

    _micro_batches_are_local = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._micro_batch_numbers: list[list[float]] = []
        self._tokens_before_step = 0.0
        super().__init__(*args, **kwargs)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """As in TRL, but while training nothing is gathered from the other ranks."""
        if self._step_reduction is None or not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # type: ignore[no-untyped-call]
        with self._metrics_stay_local():
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # type: ignore[no-untyped-call]
        self._note_micro_batch(inputs.get("labels"))
        return loss

    @contextmanager
    def _metrics_stay_local(self) -> Iterator[None]:
        self.accelerator.gather_for_metrics = lambda value, *_, **__: value
        try:
            yield
        finally:
            del self.accelerator.gather_for_metrics

    def _note_micro_batch(self, labels: Tensor | None) -> None:
        """Keeps what TRL just logged for this micro-batch, or nothing where this Unsloth backend logs nothing."""
        logged = self._metrics["train"]
        if labels is not None and any(name in logged for name in _TOKEN_MEANS + _RANK_MEANS):
            labelled = float((labels[..., 1:] != -100).sum())
            metrics = [logged[name][-1] if name in logged else 0.0 for name in _TOKEN_MEANS + _RANK_MEANS]
            self._micro_batch_numbers.append([labelled, *metrics])

    def _num_step_numbers(self) -> int:
        return _MICRO_BATCH_NUMBERS * self.args.gradient_accumulation_steps

    def _step_numbers(self) -> list[float]:
        return [number for micro_batch in self._micro_batch_numbers for number in micro_batch]

    def _take_rows(self, rows: list[RankReport]) -> None:
        """Puts into TRL's log what it would have gathered in each micro-batch."""
        logged = self._metrics["train"]
        if "num_tokens" in logged:
            self._tokens_before_step += sum(row.tokens for row in rows)
            self._total_train_tokens = int(self._tokens_before_step)
            logged["num_tokens"] = [self._total_train_tokens]
        count = len(self._micro_batch_numbers)
        for index in range(count):
            start = index * _MICRO_BATCH_NUMBERS
            ranks = [row.numbers[start : start + _MICRO_BATCH_NUMBERS] for row in rows]
            for name, value in _means_over_ranks(ranks).items():
                if name in logged:
                    logged[name][index - count] = value
        self._micro_batch_numbers = []


def _means_over_ranks(ranks: list[Sequence[float]]) -> dict[str, float]:
    """`ranks`: `[world_size][1 + metrics]`, labelled tokens first. Each metric's mean as TRL gathers it."""
    labelled = [numbers[0] for numbers in ranks]
    means = {}
    for column, name in enumerate(_TOKEN_MEANS + _RANK_MEANS, start=1):
        weights = labelled if name in _TOKEN_MEANS else [1.0] * len(ranks)
        total = sum(weights)
        weighted = sum(weight * numbers[column] for weight, numbers in zip(weights, ranks, strict=True))
        means[name] = weighted / total if total else 0.0
    return means
