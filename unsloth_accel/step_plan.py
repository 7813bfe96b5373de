"""How a rank computes its rows of an optimizer step, and the record of how that was found."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from .errors import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """Says how the rows of an optimizer step are computed; which rows those are, and their loss, it does not touch.

    Args:
        pieces (`int`, *optional*):
            Into how many batches the micro-batches of a rank's step are put together. `None`: as many as
            `gradient_accumulation_steps` says.
        tokens (`int`, *optional*):
            The most tokens of a piece; a step of more gets more pieces. `None`: no limit. Needs `pieces`.
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
    tokens: int | None = None
    layers_kept: int | Literal["all"] = 0
    balance: bool = True

    def __post_init__(self) -> None:
        for name in ("pieces", "tokens"):
            value = getattr(self, name)
            if value is not None and not _is_count(value, least=1):
                raise ConfigurationError(f"`{name}` must be a positive integer or None, got {value!r}.")
        if self.tokens is not None and self.pieces is None:
            raise ConfigurationError(f"`tokens={self.tokens}` limits the pieces, so `pieces` must be given, too.")
        if self.layers_kept != "all" and not _is_count(self.layers_kept, least=0):
            raise ConfigurationError(f"`layers_kept` must be 0 or more, or 'all', got {self.layers_kept!r}.")
        if not isinstance(self.balance, bool):
            raise ConfigurationError(f"`balance` must be true or false, got {self.balance!r}.")

    @classmethod
    def from_json(cls, text: str) -> "StepPlan":
        """Reads what [`to_json`] wrote; of the record of a run, its plan.

        Raises:
            ConfigurationError: If the text is no JSON object of this class's fields.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigurationError(f"{_no_plan(text)} {error}") from error
        if isinstance(values, Mapping) and isinstance(values.get("plan"), Mapping):
            values = values["plan"]
        if not isinstance(values, Mapping) or not values.keys() <= {field.name for field in fields(cls)}:
            raise ConfigurationError(_no_plan(text))
        return cls(**values)

    def to_json(self) -> str:
        """The plan as JSON, to be given to another run, also as `UNSLOTH_ACCEL_PLAN`."""
        return json.dumps(asdict(self))

    def __str__(self) -> str:
        pieces = "micro-batches as given" if self.pieces is None else f"{self.pieces} piece{'s' * (self.pieces > 1)}"
        limit = f" of at most {self.tokens:,} tokens" if self.tokens is not None else ""
        rows = "balanced" if self.balance else "as they come"
        layers = f", {self.layers_kept} layers not recomputed" if self.layers_kept else ""
        return f"{pieces}{limit}{layers}, rows {rows}"


@dataclass(frozen=True, kw_only=True)
class PlanCandidate:
    """One way to compute the steps of a run that fits into memory.

    Args:
        pieces (`int`, *optional*): The pieces of a step. `None`: micro-batches as given.
        tokens (`int`, *optional*): The most tokens of a piece.
        layers_kept (`int`): The layers that are not recomputed.
        microseconds (`float`, *optional*): What the slowest rank took for a token of a step; None if not measured.
    """

    pieces: int | None
    tokens: int | None
    layers_kept: int
    microseconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class StepPlanRecord:
    """How the steps of a run are computed, and why.

    Given as `UnslothAcceleratorPlugin(plan=record)`, its plan is followed as it is.

    Args:
        plan ([`StepPlan`]): What is followed now.
        reason (`str`): Why.
        layers (`int`): The layers that could be recomputed.
        tokens (`int`, *optional*): The most tokens that a rank had in a step when the plan was made.
        peak_gib (`float`, *optional*): What the fullest rank had used then, in GiB.
        free_gib (`float`, *optional*): What it had left then, without the margin, in GiB.
        candidates (`tuple[PlanCandidate, ...]`): What was chosen from.
    """

    plan: StepPlan
    reason: str
    layers: int = 0
    tokens: int | None = None
    peak_gib: float | None = None
    free_gib: float | None = None
    candidates: tuple[PlanCandidate, ...] = ()

    def to_json(self) -> str:
        """The record as JSON text."""
        return json.dumps(asdict(self))

    def __str__(self) -> str:
        memory = ""
        if self.peak_gib is not None and self.free_gib is not None:
            memory = f"; fullest rank: {self.peak_gib:.1f} GiB used, {self.free_gib:.1f} GiB left"
        layers = f"; of {self.layers} layers" if self.plan.layers_kept else ""
        return f"{self.plan}{layers}; {self.reason}{memory}"


def _no_plan(text: str) -> str:
    names = ", ".join(field.name for field in fields(StepPlan))
    return f"`plan` must be a JSON object of {names}, got {text!r}: give what `to_json` of a plan or its record wrote."


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
