"""The loss of an evaluation, weighed by tokens over all ranks."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..plan.out_of_memory import compute_parts
from ..plan.pieces import can_be_cut, halve
from .sft_metrics import TOKEN_MEANS, count_labelled


class TokenWeightedLoss:
    """Adds up what the batches of an evaluation lost, each weighed by its labelled tokens.

    transformers gives every row the mean of its batch, and every batch of documents side by side the weight of one
    row, so what it reports depends on how rows fall into batches and ranks. The sum over all tokens divided by their
    number does not.

    Args:
        trainer (`trl.SFTTrainer`): Whose evaluation.
        splits (`bool`): Whether a batch that does not fit into memory is cut and computed again.
    """

    def __init__(self, trainer: Any, *, splits: bool) -> None:
        self._trainer, self._splits = trainer, splits
        # For the loss and each of TRL's metrics: what was lost in all, and over how many tokens.
        self._sums = torch.zeros(1 + len(TOKEN_MEANS), 2, dtype=torch.float64, device=trainer.args.device)
        self._taken_in = self._noted()

    def step(self, compute: Callable[[Any], Tensor], inputs: Mapping[str, Any]) -> Tensor:
        """Computes a batch, in parts if it does not fit as a whole; without the other ranks.

        Args:
            compute (`Callable`): Computes the mean loss of a batch.
            inputs (`Mapping[str, torch.Tensor]`): The batch.

        Returns:
            `torch.Tensor`: The mean loss of what was computed last, a scalar.
        """
        last = None
        for batch, last in compute_parts([inputs], compute, self._cut if self._splits else None):
            self._add(last, batch["labels"])
        assert last is not None, "the last part fitted"
        return last

    def _cut(self, batch: Mapping[str, Any], error: str) -> list[dict[str, Tensor]]:
        logged = self._trainer._metrics["eval"]
        for name in TOKEN_MEANS:  # what TRL has noted of the part that broke off
            del logged.get(name, [])[self._taken_in[name] :]
        parts = halve(batch) if can_be_cut(batch) else []
        if len(parts) < 2:
            raise torch.OutOfMemoryError(f"One row does not fit into memory in evaluation. {error}")
        return parts

    def put_into(self, metrics: dict[str, float], prefix: str) -> None:
        """Replaces the loss in what transformers returns, and TRL's metrics in what it will log.

        Args:
            metrics (`dict[str, float]`): Those of the evaluation.
            prefix (`str`): What their names begin with.
        """
        sums = self._trainer.accelerator.reduce(self._sums, reduction="sum").tolist()
        (lost, tokens), *others = sums
        if tokens:
            metrics[f"{prefix}_loss"] = lost / tokens
        logged = self._trainer._metrics["eval"]
        for name, (total, weight) in zip(TOKEN_MEANS, others, strict=True):
            if weight:
                logged[name] = [total / weight]

    def _add(self, loss: Tensor, labels: Tensor) -> None:
        labelled = count_labelled(labels).to(self._sums)
        # A batch without a labelled token has no mean.
        self._sums[0, 0] += torch.where(labelled > 0, loss.detach().to(self._sums) * labelled, 0.0)
        self._sums[0, 1] += labelled
        taken_in, self._taken_in = self._taken_in, self._noted()
        for row, name in enumerate(TOKEN_MEANS, start=1):
            for value in self._trainer._metrics["eval"].get(name, [])[taken_in[name] :]:
                self._sums[row, 0] += value * labelled
                self._sums[row, 1] += labelled

    def _noted(self) -> dict[str, int]:
        """How many values TRL has noted of each metric."""
        logged = self._trainer._metrics["eval"]
        return {name: len(logged.get(name, [])) for name in TOKEN_MEANS}
