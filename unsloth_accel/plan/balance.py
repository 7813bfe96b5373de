"""Groups of nearly equal cost: longest processing time first, then a local search."""

from heapq import heappop, heapreplace

import numpy as np

from .lengths import IntArray


# A group costlier than the mean by less than one part in so many is not worth searching on.
GOOD_ENOUGH = 512
# The search ends after so many moves, and looks for partners only among the cheapest groups: a step of 65,536 rows on
# 1,024 ranks is then planned in a tenth of a second.
MOVES = 200
PARTNERS = 32


def longest_first(costs: list[int], groups: int, least: int = 1) -> list[list[int]]:
    """Gives each row, the costliest first, to the group that is cheapest so far.

    This is the rule of Graham 1969, "Bounds on multiprocessing timing anomalies" (https://doi.org/10.1137/0117039):
    the costliest group is at most 4/3 of the best there is, unless `least` forbids that. Ties go to the row and to the
    group that comes first.

    Args:
        costs (`list[int]`): The cost of each row, at least `groups * least` of them.
        groups (`int`): The number of groups.
        least (`int`, *optional*, defaults to 1): The rows that each group gets at least.

    Returns:
        `list[list[int]]`: The rows of each group, the costliest first.
    """
    members: list[list[int]] = [[] for _ in range(groups)]
    cheapest = [(0, group) for group in range(groups)]
    not_owed = len(costs) - groups * least
    for row in sorted(range(len(costs)), key=costs.__getitem__, reverse=True):
        while not_owed == 0 and len(members[cheapest[0][1]]) >= least:
            heappop(cheapest)  # what is left belongs to the groups that have too few
        total, group = cheapest[0]
        not_owed -= len(members[group]) >= least
        members[group].append(row)
        heapreplace(cheapest, (total + costs[row], group))
    return members


def balance(costs: IntArray, groups: int, least: int = 1) -> list[list[int]]:
    """Splits rows into groups whose costliest is as cheap as a short search can make it.

    Args:
        costs (`numpy.ndarray` of `int64`): The cost of each row, at least `groups * least` of them.
        groups (`int`): The number of groups.
        least (`int`, *optional*, defaults to 1): The rows that each group gets at least.

    Returns:
        `list[list[int]]`: The rows of each group.
    """
    members = longest_first(costs.tolist(), groups, least)
    totals = np.array([costs[rows].sum() for rows in members])
    for _ in range(MOVES):
        costliest = int(totals.argmax())
        excess = int(totals[costliest]) * groups - int(totals.sum())
        if excess * GOOD_ENOUGH <= totals.sum() or not _move(members, totals, costs, costliest, least):
            break
    return members


def _move(members: list[list[int]], totals: IntArray, costs: IntArray, costliest: int, least: int) -> bool:
    """The costliest group gives a row away, or swaps one for a cheaper: what lowers the costlier of the two most."""
    partners = [group for group in totals.argsort(kind="stable")[:PARTNERS].tolist() if group != costliest]
    # Each candidate is a partner and a row of it, or -1: the partner gives nothing back.
    nothing = [-1] if len(members[costliest]) > least else []
    candidates = [(group, row) for group in partners for row in nothing + members[group]]
    if not candidates:
        return False
    theirs = np.array([0 if row < 0 else costs[row] for _, row in candidates])
    totals_of_theirs = totals[[group for group, _ in candidates]]
    moved = costs[members[costliest]][:, None] - theirs
    after = np.maximum(totals[costliest] - moved, totals_of_theirs + moved)
    mine, choice = np.unravel_index(after.argmin(), after.shape)
    if after[mine, choice] >= totals[costliest]:
        return False
    group, row = candidates[choice]
    members[group].append(members[costliest].pop(int(mine)))
    if row >= 0:
        members[group].remove(row)
        members[costliest].append(row)
    totals[costliest] -= moved[mine, choice]
    totals[group] += moved[mine, choice]
    return True
