"""Compares steps with and without something within one run, because two runs differ by more than what is measured."""

import statistics
import time
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback


BLOCK_STEPS = 10


class EveryOtherBlock(TrainerCallback):
    """Times the steps of a run that has something in every other block of 10 steps.

    Args:
        begin (`Callable`): Called with this when training begins, to put [`if_on`] in place.
    """

    def __init__(self, begin: Callable[["EveryOtherBlock"], None]) -> None:
        self._begin, self.is_on, self._began = begin, True, 0.0
        self._seconds: dict[bool, list[float]] = {True: [], False: []}

    def if_on(self, method: Callable[..., Any], otherwise: Any) -> Callable[..., Any]:
        """The method, which does nothing and returns `otherwise` in the blocks without."""
        return lambda *args, **kwargs: method(*args, **kwargs) if self.is_on else otherwise

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._begin(self)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        now, place = time.perf_counter(), state.global_step % BLOCK_STEPS
        # What a step has reported is read in the next one, so the first steps of a block are half of the other kind.
        if place >= 2 and state.global_step > BLOCK_STEPS:
            self._seconds[self.is_on].append(now - self._began)
        if place == 0:
            self.is_on = not self.is_on
        self._began = now

    def figures(self) -> dict[str, float]:
        """Milliseconds of the median step without and with it, and how far chance alone sets the two apart."""
        without, having = self._seconds[False], self._seconds[True]
        first, _, third = statistics.quantiles(without, n=4)
        # The standard error of a median of n normally distributed values is 1.2533 of their deviation / sqrt(n).
        error = 1.2533 * (third - first) / 1.349 / len(without) ** 0.5
        return {
            "without_ms": round(1000 * statistics.median(without), 3),
            "with_ms": round(1000 * statistics.median(having), 3),
            "standard_error_ms": round(1000 * 2**0.5 * error, 3),
            "steps": len(without) + len(having),
        }
