"""How a rank computes its rows of an optimizer step."""

from dataclasses import dataclass
from typing import Any, Literal

from .errors import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """Says how the rows of an optimizer step are computed; which rows those are, and their loss, it does not touch.

    Args:
        pieces (`int`, *optional*):
            Into how many batches the micro-batches of a rank's step are put together. `None`: as many as
            `gradient_accumulation_steps` says.
        layers_kept (`int` or `"all"`, *optional*, defaults to 0):
            How many layers keep their activations, spread evenly, instead of recomputing them in backward.
        balance (`bool`, *optional*, defaults to `True`):
            Whether the rows of a step are dealt to the ranks by what they cost, instead of by their number.

    Raises:
        ConfigurationError: If a value is not allowed.

    Example:

    ```python
    >>> from unsloth_accel import StepPlan, UnslothAcceleratorPlugin

    >>> plugin = UnslothAcceleratorPlugin(plan=StepPlan(pieces=1, layers_kept="all"))
    ```
    """

    pieces: int | None = None
    layers_kept: int | Literal["all"] = 0
    balance: bool = True

    def __post_init__(self) -> None:
        if self.pieces is not None and not _is_count(self.pieces, least=1):
            raise ConfigurationError(f"`pieces` must be a positive integer or None, got {self.pieces!r}.")
        if self.layers_kept != "all" and not _is_count(self.layers_kept, least=0):
            raise ConfigurationError(f"`layers_kept` must be 0 or more, or 'all', got {self.layers_kept!r}.")
        if not isinstance(self.balance, bool):
            raise ConfigurationError(f"`balance` must be true or false, got {self.balance!r}.")


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
