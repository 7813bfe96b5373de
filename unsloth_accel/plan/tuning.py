"""Finds the plan of a run from what all ranks report of its first steps."""

from collections.abc import Sequence
from dataclasses import replace

from ..step_plan import PlanCandidate, StepPlan, StepPlanRecord
from .candidates import MemoryFigures, as_given, candidates, first_choice, micro_batch_candidate
from .pieces import Together
from .probe import ProbeFigures


# A run of fewer steps is over before it has gained what trying costs.
STEPS_WORTH_TUNING = 30
# Steps of each candidate: the first may compile, and is not counted.
STEPS_TRIED = 3
# Another candidate than the rule's must be faster by that, or noise would choose.
CLEARLY = 0.95
# Steps differ: the largest is expected to have so much more than the largest that was measured.
HEADROOM = 1.25
GIB = 2**30


class PlanTuner:
    """Is told after each step what the ranks reported of it, and says how to compute the next one.

    No plan changes what is computed, so the first real steps of a run are what is measured: one as the user wrote it,
    a second one whose memory is measured, then a few of each candidate. From the same reports every rank finds the
    same plan.

    Args:
        rows (`int`): The rows of a rank in a step.
        micro_batch_rows (`int`): The rows of one micro-batch.
        longest_row (`int`, *optional*): The most tokens of a row, if that is known.
        layers (`int`): The layers that can be kept.
        balance (`bool`): Whether rows are dealt by cost.
        steps (`int`): The optimizer steps of the run.
    """

    def __init__(
        self, *, rows: int, micro_batch_rows: int, longest_row: int | None, layers: int, balance: bool, steps: int
    ) -> None:
        self._rows, self._micro_batch_rows, self._longest_row = rows, micro_batch_rows, longest_row
        self._layers, self._balance = layers, balance
        self._tries = steps >= STEPS_WORTH_TUNING
        self._found: list[PlanCandidate] = []
        self._times: list[list[float]] = []
        self._used: list[int | None] = [None]  # by step: the candidate it ran with
        self._figures: list[ProbeFigures] = []
        self._tokens = 0.0
        self._rule = self._chosen = 0  # indices of candidates: what the rule says, and what is used
        self.record = self._record(PlanCandidate(pieces=None, tokens=None, layers_kept=0), "memory is being measured")
        self.is_done = False

    @property
    def measures_memory(self) -> bool:
        """Whether the step that begins is the one whose memory is measured."""
        return not self._found and len(self._used) == 2

    def use_unlimited(self) -> None:
        """Chooses without measuring, where no memory of a device is a limit."""
        self._found = candidates(None, 0, 0, self._rows, self._layers)
        self._finish("the memory of a CPU is not measured")

    def settle(self, figures: Sequence[ProbeFigures], milliseconds: Sequence[float]) -> None:
        """Takes in the reports of a step.

        Args:
            figures (`Sequence[ProbeFigures]`): What each rank measured in it.
            milliseconds (`Sequence[float]`): What each rank took to compute the step before it.
        """
        step = len(self._used)
        if not self._found and step >= 2:
            self._find(figures)
        elif self._found:
            self._note_time(milliseconds)
        self._tokens = sum(one.step_tokens for one in figures) / len(figures)
        self._go_on()

    def _find(self, figures: Sequence[ProbeFigures]) -> None:
        self._figures = list(figures)
        memory = MemoryFigures(
            room=min(one.room for one in figures),
            work=max(one.work for one in figures),
            layer=max(one.layer for one in figures),
            measured_tokens=max(one.batch_tokens for one in figures),
        )
        tokens = HEADROOM * max(one.together_tokens for one in figures)
        batches = self._rows // self._micro_batch_rows
        # What is never cut must fit at its largest.
        row, batch = self._longest_row, self._longest_row and self._micro_batch_rows * self._longest_row
        match Together(int(min(one.together for one in figures))):
            case Together.NOT:
                self._found = [micro_batch_candidate(memory, batch, self._layers)]
            case Together.IMAGES:
                layers = self._layers if batch else 0
                self._found = candidates(memory, tokens, batch or 0, self._rows, layers, batches)
                self._rule = as_given(self._found, batches)
            case Together.ROWS:
                self._found = candidates(memory, tokens, row or 0, self._rows, self._layers, batches)
                self._rule = as_given(self._found, batches)
            case Together.DOCUMENTS:
                self._found = candidates(memory, tokens, row or 0, self._rows, self._layers)
                self._rule = first_choice(self._found, tokens)
        self._chosen = self._rule
        self._times = [[] for _ in self._found]

    def _note_time(self, milliseconds: Sequence[float]) -> None:
        """The times are those of the step before; the first step of a candidate is not counted."""
        before, at_that_time = self._used[-3:-1] if len(self._used) > 2 else (None, None)
        if at_that_time is not None and before == at_that_time and self._tokens:
            self._times[at_that_time].append(1000 * max(milliseconds) / self._tokens)

    def _go_on(self) -> None:
        if self.is_done or not self._found:
            self._used.append(None)
            return
        if len(self._found) == 1:
            self._finish("the only one that fits" if self._layers else "there are no layers to keep")
        elif not self._tries:
            self._finish(f"the rule's choice, as the run has fewer than {STEPS_WORTH_TUNING} steps")
        elif all(len(times) >= STEPS_TRIED - 1 for times in self._times):
            self._choose_fastest()
        else:
            self._try_next()
        self._used.append(self._chosen)

    def _try_next(self) -> None:
        """Each candidate for some steps, beginning with the rule's choice."""
        order = sorted(range(len(self._found)), key=lambda index: (index != self._rule, index))
        tried = [self._used.count(index) for index in range(len(self._found))]
        left = [index for index in order if tried[index] < STEPS_TRIED]
        self._chosen = left[0] if left else order[-1]
        self.record = self._record(self._found[self._chosen], f"one of {len(self._found)} candidates that are tried")

    def _choose_fastest(self) -> None:
        means = [sum(times) / len(times) for times in self._times]
        fastest = min(range(len(means)), key=means.__getitem__)
        self._chosen = fastest if means[fastest] < CLEARLY * means[self._rule] else self._rule
        self._found = [replace(one, microseconds=round(mean, 3)) for one, mean in zip(self._found, means, strict=True)]
        self._finish(f"the fastest of {len(means)} candidates, or within 5 % of it")

    def _finish(self, reason: str) -> None:
        self.record = self._record(self._found[self._chosen], reason)
        self.is_done = True

    def _record(self, chosen: PlanCandidate, reason: str) -> StepPlanRecord:
        figures = self._figures
        return StepPlanRecord(
            plan=StepPlan(
                pieces=chosen.pieces, tokens=chosen.tokens, layers_kept=chosen.layers_kept, balance=self._balance
            ),
            reason=reason,
            layers=self._layers,
            tokens=int(max(one.step_tokens for one in figures)) if figures else None,
            peak_gib=round(max(one.peak for one in figures) / GIB, 2) if figures else None,
            free_gib=round(min(one.room for one in figures) / GIB, 2) if figures else None,
            candidates=tuple(self._found),
        )
