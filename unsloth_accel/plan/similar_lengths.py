"""Padded batches: rows of similar length together, so that little of a batch is padding."""

import numpy as np

from .cost import RowCost
from .lengths import RowLengths


def similar_lengths(lengths: RowLengths, cost: RowCost, batches: int) -> list[list[int]]:
    """Cuts the rows, sorted by length, into batches whose costliest is as cheap as it can be.

    Args:
        lengths (`RowLengths`): The rows, at least as many as `batches`.
        cost (`RowCost`): What padded rows cost.
        batches (`int`): The number of batches.

    Returns:
        `list[list[int]]`: The rows of each batch, the longest rows in the first. None is empty.
    """
    order = np.argsort(-lengths.tokens, kind="stable")
    longest_of_batch = RowLengths.of_documents(lengths.tokens[order])
    each = np.maximum(1, cost.of_rows(longest_of_batch)).tolist()
    starts = _split_largest(_cut(each, _least_cap(each, batches)), len(each), batches)
    return [part.tolist() for part in np.split(order, starts[1:])]


def deal_in_rounds(costs: list[int], ranks: int) -> list[list[int]]:
    """Deals batches to ranks, to each the same number: the costliest of a round to the rank that is cheapest so far.

    Args:
        costs (`list[int]`): The cost of each batch, a multiple of `ranks` of them.
        ranks (`int`): The number of ranks.

    Returns:
        `list[list[int]]`: The batches of each rank.
    """
    dealt: list[list[int]] = [[] for _ in range(ranks)]
    totals = [0] * ranks
    order = sorted(range(len(costs)), key=costs.__getitem__, reverse=True)
    for start in range(0, len(order), ranks):
        cheapest_first = sorted(range(ranks), key=totals.__getitem__)
        for rank, batch in zip(cheapest_first, order[start : start + ranks], strict=True):
            dealt[rank].append(batch)
            totals[rank] += costs[batch]
    return dealt


def _least_cap(each: list[int], batches: int) -> int:
    """The least cost, found by bisection, that no batch has to exceed."""
    too_small, cap = each[0] - 1, each[0] * -(-len(each) // batches)
    while cap - too_small > 1:
        middle = (too_small + cap) // 2
        if len(_cut(each, middle)) <= batches:
            cap = middle
        else:
            too_small = middle
    return cap


def _cut(each: list[int], cap: int) -> list[int]:
    """Where batches start if each takes as many rows as its longest, which is its first, allows."""
    starts, row = [], 0
    while row < len(each):
        starts.append(row)
        row += max(1, cap // each[row])
    return starts


def _split_largest(starts: list[int], rows: int, batches: int) -> list[int]:
    """Halves the batch with the most rows until there are enough."""
    while len(starts) < batches:
        sizes = [end - start for start, end in zip(starts, [*starts[1:], rows], strict=True)]
        largest = sizes.index(max(sizes))
        starts = sorted([*starts, starts[largest] + sizes[largest] // 2])
    return starts
