"""What a run's metrics say, in arrays: a row for each step that counts, a column for each rank."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from .plan import Plan


Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Steps:
    """The optimizer steps whose outcome the run kept. What was not measured is NaN.

    Args:
        number (`Array` of shape `(steps,)`): The global step, from 1.
        warm (`Array` of shape `(steps,)`): 0 for the first step after a start, which compiles and allocates; else 1.
        seconds (`Array` of shape `(steps,)`): How long each step took.
        tokens (`Array` of shape `(steps, ranks)`): The tokens of each rank's rows.
        computed_tokens (`Array` of shape `(steps, ranks)`): The same with padding.
        wait_seconds (`Array` of shape `(steps, ranks)`): How long each rank waited for the slowest.
        peak_memory_gib (`Array` of shape `(steps, ranks)`): The most memory that each rank had allocated.
        mfu (`Array` of shape `(steps,)`): Model FLOPs utilization, from 0 to 1.
        hfu (`Array` of shape `(steps,)`): Hardware FLOPs utilization, which counts what is recomputed, from 0 to 1.
    """

    number: Array
    warm: Array
    seconds: Array
    tokens: Array
    computed_tokens: Array
    wait_seconds: Array
    peak_memory_gib: Array
    mfu: Array
    hfu: Array

    @cached_property
    def ranks(self) -> Array:
        """How many ranks computed each step."""
        there: Array = np.isfinite(self.tokens).sum(axis=1).astype(np.float64)
        return there

    @cached_property
    def all_tokens(self) -> Array:
        """The tokens of each step on all ranks."""
        total: Array = np.nansum(self.tokens, axis=1)
        return total

    @cached_property
    def waiting(self) -> Array:
        """The share of each step that each rank waited."""
        return self.wait_seconds / self.seconds[:, None]

    @cached_property
    def fullest(self) -> Array:
        """The peak memory of the fullest rank in each step, in GiB."""
        return nan_max(self.peak_memory_gib)


@dataclass(frozen=True)
class Event:
    """Something that happened to the run.

    Args:
        kind (`str`): `"start"`, `"restart"`, `"plan"`, `"split"`, `"stop"`, `"note"` or `"end"`.
        step (`int`): After which step.
        seconds (`float`): How long after the first start.
        text (`str`): What it was, in a sentence.
    """

    kind: str
    step: int
    seconds: float
    text: str


@dataclass(frozen=True)
class Run:
    """A run from its first start to its last word.

    Args:
        name (`str`): What the report calls it: its folder.
        start (`Mapping[str, Any]`): The last start's line: model, ranks, GPU, versions ...
        began (`float`): When the first start was, in seconds since 1970.
        seconds (`float`): From the first start to the last line.
        steps (`Steps`): The steps that count.
        logs (`Mapping[str, tuple[Array, Array]]`): By name, the steps at which the Trainer logged it, and its values.
        plans (`tuple[Plan, ...]`): What was decided about how steps are computed, the last one last; at least one.
        events (`tuple[Event, ...]`): What happened, in order.
        repeated (`tuple[float, ...]`): The seconds of each step that was lost, because a restart began before it.
        idle (`tuple[float, ...]`): The seconds between a last line and each restart.
        notes (`tuple[str, ...]`): What a reader must know of the data itself.
    """

    name: str
    start: Mapping[str, Any]
    began: float
    seconds: float
    steps: Steps
    logs: Mapping[str, tuple[Array, Array]]
    plans: tuple[Plan, ...]
    events: tuple[Event, ...]
    repeated: tuple[float, ...]
    idle: tuple[float, ...]
    notes: tuple[str, ...]


def nan_max(values: Array) -> Array:
    """The largest of each row, NaN where nothing was measured; numpy's own warns there."""
    found: Array = np.where(np.isfinite(values), values, -np.inf).max(axis=1)
    return np.where(np.isfinite(found), found, np.nan)
