"""An epoch over a data set: its steps and tokens, its padding, and how evenly its rows load the ranks."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..plan.assignment import StepAssignment, assign_rows, rank_costs
from ..plan.cost import RowCost
from ..plan.lengths import RowLengths
from .recipe import Recipe


# Steps drawn from an epoch. The imbalance of 500 steps is known to a percent; planning them takes seconds.
STEPS_DRAWN = 500
SEED = 0


@dataclass(frozen=True)
class Epoch:
    """What a data set means for a recipe on so many ranks.

    Args:
        ranks (`int`): The ranks.
        steps (`int`): The optimizer steps of an epoch.
        tokens (`int`): The tokens of an epoch.
        padding (`float`): The share of padding in batches that are padded to their longest row; padding-free ones,
            which Unsloth makes of text, have none.
        longest_row (`int`): The most tokens of a row.
        largest_step (`int`): The most tokens that a rank has in a step, balanced.
        mean_tokens (`float`): The tokens of a rank in a step, on average.
        mean_squares (`float`): The sum of its rows' tokens squared, on average.
        imbalance (`float`): The time of the slowest rank over that of the mean, over all steps, balanced.
        plain_imbalance (`float`): The same with the rows dealt in their order.
    """

    ranks: int
    steps: int
    tokens: int
    padding: float
    longest_row: int
    largest_step: int
    mean_tokens: float
    mean_squares: float
    imbalance: float
    plain_imbalance: float


def draw_epoch(lengths: RowLengths, cost: RowCost, recipe: Recipe, ranks: int) -> Epoch | None:
    """Draws steps of an epoch and deals their rows to the ranks.

    Args:
        lengths (`RowLengths`): The rows of the data set.
        cost (`RowCost`): What rows cost.
        recipe (`Recipe`): The rows of a micro-batch and the micro-batches of a step.
        ranks (`int`): The ranks.

    Returns:
        `Epoch` or `None`: None where the data set does not fill one step.
    """
    steps = list(_steps(lengths, recipe.rows_of_rank * ranks))
    if not steps:
        return None
    in_order = _in_order(recipe, ranks)
    plain = np.array([rank_costs(in_order, step, cost) for step in steps])
    plans = [assign_rows(step, cost, ranks, recipe.accumulation, slots=1) for step in steps]
    balanced = np.array([rank_costs(plan, step, cost) for plan, step in zip(plans, steps, strict=True)])
    tokens = np.array([_tokens(plan, step) for plan, step in zip(plans, steps, strict=True)])
    return Epoch(
        ranks=ranks,
        steps=-(-len(lengths) // (recipe.rows_of_rank * ranks)),
        tokens=int(lengths.tokens.sum()),
        padding=_padding(steps, recipe.rows),
        longest_row=int(lengths.tokens.max()),
        largest_step=int(tokens.max()),
        mean_tokens=float(tokens.mean()),
        mean_squares=sum(float(step.squares.sum()) for step in steps) / tokens.size,
        imbalance=_imbalance(balanced),
        plain_imbalance=_imbalance(plain),
    )


def _steps(lengths: RowLengths, rows: int) -> Iterator[RowLengths]:
    order = np.random.default_rng(SEED).permutation(len(lengths))
    for start in range(0, min(len(order) - rows + 1, STEPS_DRAWN * rows), rows):
        yield lengths[order[start : start + rows]]


def _in_order(recipe: Recipe, ranks: int) -> StepAssignment:
    """As Accelerate's `BatchSamplerShard` deals: micro-batch s of rank r is number s * ranks + r."""
    batches = np.arange(recipe.rows_of_rank * ranks).reshape(recipe.accumulation, ranks, recipe.rows)
    return [batches[:, rank].tolist() for rank in range(ranks)]


def _tokens(plan: StepAssignment, step: RowLengths) -> list[int]:
    return [sum(int(step.tokens[rows].sum()) for rows in rank) for rank in plan]


def _imbalance(costs: "np.ndarray[tuple[int, int], np.dtype[np.int64]]") -> float:
    """Of costs by step and rank."""
    return float(costs.max(axis=1).sum() / costs.mean(axis=1).sum())


def _padding(steps: list[RowLengths], rows: int) -> float:
    batches = np.concatenate([step.tokens.reshape(-1, rows) for step in steps])
    return float(1 - batches.sum() / (batches.max(axis=1) * rows).sum())
