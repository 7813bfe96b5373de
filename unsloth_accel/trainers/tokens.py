"""Counts what a rank computes in a step."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ..ddp.reports import Action, RankReport


class TokenCount:
    """Reports a rank's real tokens of each optimizer step, padding not counted, as `tokens`."""

    columns: tuple[str, ...] = ("tokens",)

    def __init__(self) -> None:
        self._tokens: Tensor | float = 0.0

    def begin_step(self, batches: Sequence[Any]) -> None:
        """Counts the micro-batches of the step that begins; on their device, so nothing waits for it."""
        self._tokens = sum((count_tokens(inputs) for inputs in batches), 0.0)

    def report(self) -> Mapping[str, float | Tensor]:
        """The step's tokens."""
        return {"tokens": self._tokens}

    def decide(self, ranks: Sequence[RankReport]) -> Action | None:
        """Nothing follows from the counts."""
        return None


def count_tokens(inputs: Any) -> Tensor | float:
    """Real tokens of one micro-batch, a scalar.

    0 for a list of rows, as TRL's GRPO gets it: what it will generate from them has no length yet.
    """
    if not isinstance(inputs, Mapping):
        return 0
    mask = inputs.get("attention_mask")
    if isinstance(mask, Tensor) and mask.dim() == 2:
        return mask.sum()
    ids = inputs.get("input_ids")
    return ids.numel() if isinstance(ids, Tensor) else 0
