"""Counts what a rank computes in a step."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ..ddp.reports import Action, RankReport


class TokenCount:
    """Reports a rank's tokens of each optimizer step: `tokens` without padding, `computed_tokens` with it.

    Attributes:
        computed (`int`): The latter, of the step that has begun; who puts micro-batches together sets it anew.
    """

    columns: tuple[str, ...] = ("tokens", "computed_tokens")

    def __init__(self) -> None:
        self._tokens: Tensor | float = 0.0
        self.computed = 0

    def begin_step(self, batches: Sequence[Any]) -> None:
        """Counts the micro-batches of the step that begins; on their device, so nothing waits for it."""
        self._tokens = sum((count_tokens(inputs) for inputs in batches), 0.0)
        self.computed = sum(count_computed_tokens(inputs) for inputs in batches)

    def report(self) -> Mapping[str, float | Tensor]:
        """The step's tokens."""
        return {"tokens": self._tokens, "computed_tokens": self.computed}

    def decide(self, ranks: Sequence[RankReport]) -> Action | None:
        """Nothing follows from the counts."""
        return None


def count_tokens(inputs: Any) -> Tensor | float:
    """Real tokens of one micro-batch, a scalar.

    0 for a list of rows, as TRL's GRPO gets it: what it will generate from them has no length yet.
    """
    mask = _tensor(inputs, "attention_mask")
    if mask is not None and mask.dim() == 2:
        return mask.sum()
    return count_computed_tokens(inputs)


def count_computed_tokens(inputs: Any) -> int:
    """Tokens of one micro-batch with its padding; 0 for a list of rows."""
    ids = _tensor(inputs, "input_ids")
    return 0 if ids is None else ids.numel()


def _tensor(inputs: Any, name: str) -> Tensor | None:
    found = inputs.get(name) if isinstance(inputs, Mapping) else None
    return found if isinstance(found, Tensor) else None
