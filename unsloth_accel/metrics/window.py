"""What is known of a step, and the averages over the steps since the last log."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean


# What is added to the Trainer's log: docs/metrics.md.
METRICS = (
    "tokens_per_second",
    "tokens_per_second_per_gpu",
    "padding_share",
    "imbalance",
    "wait_share",
    "peak_memory_gib",
    "mfu",
    "hfu",
)


@dataclass(frozen=True)
class StepFacts:
    """An optimizer step as all ranks reported it. Sequences hold a value a rank.

    Args:
        seconds (`float`): How long it took.
        tokens (`Sequence[float]`): The tokens without padding.
        computed_tokens (`Sequence[float]`): The tokens with padding.
        wait_seconds (`Sequence[float]`): How long each rank waited for the slowest in the step before.
        peak_memory_gib (`Sequence[float]`): The most GPU memory so far; 0 on the CPU.
        mfu (`float`, *optional*): The share of the GPUs' dense peak that the model needed.
        hfu (`float`, *optional*): The same with what was recomputed, and with padding.
    """

    seconds: float
    tokens: Sequence[float]
    computed_tokens: Sequence[float]
    wait_seconds: Sequence[float]
    peak_memory_gib: Sequence[float]
    mfu: float | None
    hfu: float | None


@dataclass
class Window:
    """The steps since the last log.

    Args:
        before (`StepFacts`, *optional*): The step before the first of them, to which its `wait_seconds` belong.
    """

    before: StepFacts | None = None
    steps: list[StepFacts] = field(default_factory=list)

    def next(self) -> "Window":
        """The window behind this one."""
        return Window(before=self.steps[-1] if self.steps else self.before)

    def averages(self) -> dict[str, float]:
        """The metrics by name; left out is what was not measured. No step, no metric."""
        if not self.steps:
            return {}
        found = {**self._of_tokens(), **self._of_waiting(), **self._of_utilization()}
        peak = max(self.steps[-1].peak_memory_gib)
        return {**found, "peak_memory_gib": peak} if peak else found

    def _seconds(self) -> float:
        return sum(step.seconds for step in self.steps)

    def _of_tokens(self) -> dict[str, float]:
        tokens = sum(sum(step.tokens) for step in self.steps)
        computed = sum(sum(step.computed_tokens) for step in self.steps)
        if not tokens:  # a trainer that generates its rows: nothing was counted
            return {}
        ranks = len(self.steps[0].tokens)
        most = sum(max(step.tokens) for step in self.steps)
        return {
            "tokens_per_second": round(tokens / self._seconds()),
            "tokens_per_second_per_gpu": round(tokens / self._seconds() / ranks),
            "padding_share": 1 - tokens / computed,
            "imbalance": most * ranks / tokens,
        }

    def _of_waiting(self) -> dict[str, float]:
        """A rank tells only in the next step how long it waited, so these are of the steps one earlier."""
        waited = list(zip([self.before, *self.steps[:-1]], self.steps, strict=True))
        known = [(step.seconds, fmean(told.wait_seconds)) for step, told in waited if step is not None]
        if not known:
            return {}
        seconds, waits = map(sum, zip(*known, strict=True))
        return {"wait_share": waits / seconds}

    def _of_utilization(self) -> dict[str, float]:
        found = {}
        for name in ("mfu", "hfu"):
            shares = [(getattr(step, name), step.seconds) for step in self.steps]
            if all(share is not None for share, _ in shares):
                found[name] = sum(share * seconds for share, seconds in shares) / self._seconds()
        return found
