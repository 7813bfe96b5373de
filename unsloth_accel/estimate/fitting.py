"""Which plans fit into a GPU's memory, by the estimate."""

import math
from dataclasses import dataclass

from ..ddp.chunks import CHUNK_BYTES
from ..ddp.policy import DEFERRED_BYTES_LIMIT
from ..plan.candidates import first_choice
from ..plan.memory import GIB, MemoryEstimate, estimate_largest
from ..step_plan import PlanCandidate
from .recipe import Recipe


# The share of a card that `UnslothAcceleratorPlugin.memory_margin` leaves alone, and what CUDA's context and the
# kernels take, which no allocator counts: about half a GiB on each card that was looked at by others.
MARGIN = 0.1
CONTEXT_GIB = 0.5


@dataclass(frozen=True)
class FittingPlan:
    """A plan and what it needs.

    Args:
        candidate (`PlanCandidate`): Pieces, the most tokens of each, layers kept.
        memory (`MemoryEstimate`): What a rank needs, in GiB.
    """

    candidate: PlanCandidate
    memory: MemoryEstimate


def room(gpu_memory: float) -> float:
    """What a run may use of a GPU of so many GiB."""
    return gpu_memory * (1 - MARGIN) - CONTEXT_GIB


def estimate(recipe: Recipe, ranks: int, tokens: int, layers_kept: int) -> MemoryEstimate:
    """What a rank needs for pieces of up to so many tokens."""
    reduction = 0.0 if ranks == 1 else reduction_bytes(recipe.gradient_bytes) / GIB
    bucketed = ranks > 1 and recipe.gradient_bytes > DEFERRED_BYTES_LIMIT
    return estimate_largest(recipe.shape, tokens, layers_kept, recipe.bits, recipe.lora_rank, reduction, bucketed)


def reduction_bytes(gradient_bytes: int) -> int:
    """What averaging holds besides the gradients: deferred one chunk; overlapped nothing, they are DDP's buckets."""
    return min(gradient_bytes, CHUNK_BYTES) if gradient_bytes <= DEFERRED_BYTES_LIMIT else 0


def fitting_plans(recipe: Recipe, ranks: int, tokens: int, longest_row: int, limit: float) -> list[FittingPlan]:
    """The plans that fit: from the fewest pieces on, each with the most layers; more pieces only for more layers.

    The same order in which a run with `plan="auto"` looks for its plan, there with figures that it has measured.

    Args:
        recipe (`Recipe`): What is trained.
        ranks (`int`): The ranks.
        tokens (`int`): The most tokens of a rank in a step.
        longest_row (`int`): The most tokens of a row, which is never cut.
        limit (`float`): GiB that may be used.

    Returns:
        `list[FittingPlan]`: None if not even one row fits with every layer recomputed.
    """
    found: list[FittingPlan] = []
    pieces, layers = 1, recipe.shape.layers
    while pieces <= recipe.rows_of_rank and not (found and found[-1].candidate.layers_kept == layers):
        piece = max(math.ceil(tokens / pieces), longest_row)
        kept = _layers_that_fit(recipe, ranks, piece, limit)
        if kept > (found[-1].candidate.layers_kept if found else -1):
            candidate = PlanCandidate(pieces=pieces, tokens=piece, layers_kept=kept)
            found.append(FittingPlan(candidate, estimate(recipe, ranks, piece, kept)))
        pieces *= 2
    return found


def chosen(plans: list[FittingPlan], tokens: int) -> FittingPlan:
    """The one to use untuned."""
    return plans[first_choice([plan.candidate for plan in plans], tokens)]


def _layers_that_fit(recipe: Recipe, ranks: int, piece: int, limit: float) -> int:
    """The most layers that can be kept; -1 if not even none."""
    fits = (kept for kept in range(recipe.shape.layers, -1, -1) if estimate(recipe, ranks, piece, kept).peak <= limit)
    return next(fits, -1)
