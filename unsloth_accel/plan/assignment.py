"""Which rank computes which row of an optimizer step: deterministic, from the costs alone, without communication.

The rows of a step are positions 0, 1, 2 ... in it. A plan is a list of ranks, a rank a list of micro-batches, a
micro-batch a list of positions.
"""

import numpy as np

from .balance import balance, longest_first
from .cost import RowCost
from .lengths import RowLengths
from .similar_lengths import deal_in_rounds, similar_lengths


StepAssignment = list[list[list[int]]]


def assign_rows(
    lengths: RowLengths, cost: RowCost, ranks: int, micro_batches: int, slots: int | None = None
) -> StepAssignment:
    """Chooses the rows of each rank so that the slowest rank is done as early as possible.

    Ranks may get different numbers of rows, but each at least one a micro-batch. Where the balanced plan is not
    faster than the order in which the rows come, that order is kept.

    Args:
        lengths (`RowLengths`):
            The rows of the step, in the order of the sampler.
        cost (`RowCost`):
            What rows cost.
        ranks (`int`):
            The number of ranks.
        micro_batches (`int`):
            The micro-batches of a rank as the user asked for them, which is how the plain order deals the rows.
        slots (`int`, *optional*, defaults to `micro_batches`):
            The micro-batches of a rank in this plan.

    Returns:
        `list[list[list[int]]]`: For each rank its micro-batches, as positions in ascending order. With fewer rows
        than ranks, those left over have one empty micro-batch.
    """
    slots = micro_batches if slots is None else slots
    if len(lengths) < ranks:
        return [[[rank]] if rank < len(lengths) else [[]] for rank in range(ranks)]
    slots = min(slots, len(lengths) // ranks)
    plain = _in_order(len(lengths), ranks, micro_batches, slots)
    balanced = (_padded if cost.padded else _padding_free)(lengths, cost, ranks, slots)
    slowest = [max(rank_costs(plan, lengths, cost)) for plan in (plain, balanced)]
    return balanced if slowest[1] < slowest[0] else plain


def split_rows(lengths: RowLengths, cost: RowCost, pieces: int) -> list[list[int]]:
    """Splits a rank's rows into pieces of about equal cost.

    Args:
        lengths (`RowLengths`): The rows of the rank, at least one.
        cost (`RowCost`): What rows cost.
        pieces (`int`): The number of pieces; with fewer rows, each is a piece.

    Returns:
        `list[list[int]]`: The rows of each piece, as positions in ascending order. None is empty.
    """
    pieces = min(pieces, len(lengths))
    if pieces == 1:
        return [list(range(len(lengths)))]
    if cost.padded:
        return [sorted(rows) for rows in similar_lengths(lengths, cost, pieces)]
    return [sorted(rows) for rows in longest_first(cost.of_rows(lengths).tolist(), pieces)]


def rank_costs(plan: StepAssignment, lengths: RowLengths, cost: RowCost) -> list[int]:
    """What each rank's micro-batches of a plan cost together."""
    if cost.padded:
        return [sum(cost.of_batch(lengths[rows]) for rows in rank) for rank in plan]
    each = cost.of_rows(lengths).tolist()
    return [sum(each[row] for rows in rank for row in rows) for rank in plan]


def _in_order(rows: int, ranks: int, micro_batches: int, slots: int) -> StepAssignment:
    """As `BatchSamplerShard` deals them: the first micro-batch of rank 0, of rank 1, ... then the second of rank 0."""
    dealt = [part.tolist() for part in np.array_split(np.arange(rows), ranks * micro_batches)]
    plan = [[rows for rows in dealt[rank::ranks] if rows] for rank in range(ranks)]
    if slots == micro_batches:
        return plan
    return [_merged(rank, slots) for rank in plan]


def _merged(micro_batches: list[list[int]], slots: int) -> list[list[int]]:
    parts = np.array_split(np.concatenate(micro_batches), slots)
    return [part.tolist() for part in parts]


def _padding_free(lengths: RowLengths, cost: RowCost, ranks: int, slots: int) -> StepAssignment:
    by_rank = map(sorted, balance(cost.of_rows(lengths), ranks, least=slots))
    return [[[rows[i] for i in part] for part in split_rows(lengths[rows], cost, slots)] for rows in by_rank]


def _padded(lengths: RowLengths, cost: RowCost, ranks: int, slots: int) -> StepAssignment:
    batches = similar_lengths(lengths, cost, ranks * slots)
    dealt = deal_in_rounds([cost.of_batch(lengths[rows]) for rows in batches], ranks)
    return [[sorted(batches[i]) for i in rank] for rank in dealt]
