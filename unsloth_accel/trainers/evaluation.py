"""What an evaluation computes of its batches, each by one rank alone, and its means over the tokens of all ranks."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import concatenate
from torch import Tensor

from ..plan.out_of_memory import compute_parts
from ..plan.pieces import Batch, halve, is_padding_free
from .sft_metrics import TOKEN_MEANS, count_labelled


# As transformers' `prediction_step` returns it: loss, logits, labels. Without the logits where they are not wanted.
Prediction = tuple[Tensor, Any, Any]


class TokenWeightedMeans:
    """Adds up what the batches of an evaluation lost, and TRL's metrics, each weighed by its labelled tokens.

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

    def step(self, predict: Callable[[Any], Prediction], inputs: Mapping[str, Any]) -> Prediction:
        """Computes a batch, in parts if it does not fit as a whole; without the other ranks.

        Args:
            predict (`Callable`): Computes the mean loss of a batch, and its logits and labels if they are wanted.
            inputs (`Mapping[str, torch.Tensor]`): The batch.

        Returns:
            `tuple`: What `predict` gives for the batch as a whole.
        """
        labelled, parts = [], []
        for batch, prediction in compute_parts([inputs], predict, self._cut if self._splits else None):
            labelled.append(count_labelled(batch["labels"]))
            parts.append(prediction)
            self._add(prediction[0], labelled[-1])
        return parts[0] if len(parts) == 1 else _together(parts, labelled, is_padding_free(inputs))

    def _cut(self, batch: Batch, error: str) -> list[Batch]:
        logged = self._trainer._metrics["eval"]
        for name in TOKEN_MEANS:  # what TRL has noted of the part that broke off
            del logged.get(name, [])[self._taken_in[name] :]
        parts = halve(batch)
        if len(parts) < 2:
            raise torch.OutOfMemoryError(f"One row does not fit into memory in evaluation. {error}")
        return parts

    def of_all_ranks(self) -> float | None:
        """Puts TRL's metrics where it will log them, and returns the loss; None if no token has a label."""
        sums = self._trainer.accelerator.reduce(self._sums, reduction="sum").tolist()
        (lost, tokens), *others = sums
        logged = self._trainer._metrics["eval"]
        for name, (total, weight) in zip(TOKEN_MEANS, others, strict=True):
            if weight:
                logged[name] = [total / weight]
        return lost / tokens if tokens else None

    def _add(self, loss: Tensor, count: Tensor) -> None:
        labelled = count.to(self._sums)
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


def _together(parts: Sequence[Prediction], labelled: Sequence[Tensor], padding_free: bool) -> Prediction:
    """What would have been predicted of the batch that the parts are of."""
    losses, logits, labels = zip(*parts, strict=True)
    weights = torch.stack(list(labelled)).to(losses[0])
    # A part without a labelled token has no mean.
    weighed = torch.where(weights > 0, torch.stack(losses) * weights, 0.0)
    loss = weighed.sum() / weights.sum()
    if logits[0] is None:
        return loss, None, None
    dimension = 1 if padding_free else 0
    return loss, concatenate(logits, dim=dimension), concatenate(labels, dim=dimension)
