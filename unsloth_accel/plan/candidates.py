"""Which pieces and how many kept layers fit into memory, and which of those to begin with."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..step_plan import PlanCandidate


# A piece of so many tokens keeps a large GPU busy: where pieces have fewer, a step takes as long as its kernels take
# to launch, and fewer pieces are faster. Measured on H200: a 3b model takes 370 ms for 8192 tokens and at least 300 ms
# for any (docs/step_plan.md).
BUSY_TOKENS = 8192


@dataclass(frozen=True)
class MemoryFigures:
    """What the fullest rank has, and what a piece needs; measured in a step of micro-batches as given.

    Args:
        room (`float`): Bytes that pieces may use.
        work (`float`): Bytes that a token of the measured micro-batch needed with every layer recomputed.
        layer (`float`): Bytes that a layer keeps for each token, if it is not recomputed.
        measured_tokens (`float`): The tokens of the measured micro-batch. One with fewer needs no less than it did.
    """

    room: float
    work: float
    layer: float
    measured_tokens: float

    def layers_that_fit(self, tokens: float, layers: int) -> int:
        """How many layers can be kept in a piece of so many tokens; -1 if not even none."""
        left = self.room - self.work * max(tokens, self.measured_tokens)
        if left < 0:
            return -1
        return layers if self.layer <= 0 else min(layers, int(left / (self.layer * tokens)))

    def tokens_that_fit(self, layers_kept: int) -> int:
        """The most tokens of a piece that keeps so many layers."""
        return int(self.room / max(1.0, self.work + layers_kept * self.layer))


def candidates(
    memory: MemoryFigures | None, tokens: float, never_cut: int, rows: int, layers: int, padded_batches: int = 1
) -> list[PlanCandidate]:
    """The plans that fit: from the fewest pieces on, each with the most layers; more pieces only for more layers.

    Where rows are padded, more pieces also have less padding: up to one a micro-batch they count as well.

    Args:
        memory (`MemoryFigures`, *optional*): None where nothing limits, as on the CPU.
        tokens (`float`): The most tokens that a rank is expected to have in a step, as one batch.
        never_cut (`int`): The most tokens of what is never cut, as a row.
        rows (`int`): The rows of a rank in a step.
        layers (`int`): The layers that can be kept.
        padded_batches (`int`, *optional*, defaults to 1): The padded micro-batches of a rank in a step.

    Returns:
        `list[PlanCandidate]`: At least one; the first has the fewest pieces. Micro-batches as given, all layers
        recomputed, if nothing else fits.
    """
    if memory is None:
        return [PlanCandidate(pieces=1, tokens=None, layers_kept=layers)]
    found: list[PlanCandidate] = []
    for pieces in _counts(rows, padded_batches):
        best = found[-1].layers_kept if found else -1
        kept = memory.layers_that_fit(max(tokens / pieces, never_cut, 1), layers)
        if kept > best or (kept == best >= 0 and pieces <= padded_batches):
            found.append(PlanCandidate(pieces=pieces, tokens=memory.tokens_that_fit(kept), layers_kept=kept))
    return found or [PlanCandidate(pieces=None, tokens=None, layers_kept=0)]


def _counts(rows: int, batches: int) -> list[int]:
    """Twice as many pieces each time, up to one a row; and one a micro-batch."""
    doubled = [2**power for power in range(rows.bit_length())]
    return sorted({*doubled, min(batches, rows)})


def micro_batch_candidate(memory: MemoryFigures, tokens: int | None, layers: int) -> PlanCandidate:
    """The plan for micro-batches that cannot be put together.

    Args:
        memory (`MemoryFigures`): What there is.
        tokens (`int`, *optional*): The most tokens of a micro-batch, padding included. None: not known, so no layer
            is kept.
        layers (`int`): The layers that can be kept.
    """
    kept = 0 if tokens is None else max(0, memory.layers_that_fit(tokens, layers))
    return PlanCandidate(pieces=None, tokens=None, layers_kept=kept)


def as_given(found: Sequence[PlanCandidate], batches: int) -> int:
    """The index of the one with a piece for each padded micro-batch, or with most pieces up to that many."""
    return max((index for index, one in enumerate(found) if (one.pieces or 0) <= batches), default=0)


def first_choice(found: Sequence[PlanCandidate], tokens: float) -> int:
    """The index of the one to use untuned: the most layers whose pieces still keep a GPU busy, else fewest pieces."""
    busy = [index for index, one in enumerate(found) if one.pieces and tokens / one.pieces >= BUSY_TOKENS]
    return busy[-1] if busy else 0
