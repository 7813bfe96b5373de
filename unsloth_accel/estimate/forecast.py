"""What a run will need and take, all of it together."""

from dataclasses import dataclass

import numpy as np

from ..plan.cost import RowCost
from ..plan.lengths import RowLengths
from ..plan.memory import MemoryEstimate
from .communication import Links
from .epoch import Epoch, draw_epoch
from .fitting import FittingPlan, chosen, estimate, fitting_plans, room
from .recipe import Recipe
from .scaling import ScalingRow, scale
from .step_time import RankWork


@dataclass(frozen=True)
class Forecast:
    """The answer of `unsloth-accel plan`.

    Args:
        room (`float`): GiB of a GPU that the run may use.
        tokens (`int`): The most tokens of a rank in a step.
        least (`MemoryEstimate`): What one row alone needs, with every layer recomputed.
        plans (`tuple[FittingPlan, ...]`): What fits.
        plan (`FittingPlan`, *optional*): Which of them would be used; None where nothing fits.
        epoch (`Epoch`, *optional*): What the data set means; None without one, or if it does not fill a step.
        scaling (`tuple[ScalingRow, ...]`): The same on other numbers of ranks; empty where nothing fits, or the card's
            peak is not known.
    """

    room: float
    tokens: int
    least: MemoryEstimate
    plans: tuple[FittingPlan, ...]
    plan: FittingPlan | None
    epoch: Epoch | None
    scaling: tuple[ScalingRow, ...]


def make_forecast(
    recipe: Recipe,
    cost: RowCost,
    ranks: int,
    gpu_memory: float,
    peak: float | None,
    links: Links,
    lengths: RowLengths | None,
) -> Forecast:
    """Puts memory, plan, data set and time together.

    Args:
        recipe (`Recipe`): What is trained.
        cost (`RowCost`): What rows cost.
        ranks (`int`): The ranks.
        gpu_memory (`float`): GiB of each GPU.
        peak (`float`, *optional*): The card's dense peak in FLOP/s, if it is known.
        links (`Links`): The bandwidths.
        lengths (`RowLengths`, *optional*): The rows of the data set. `None`: every row has `recipe.sequence` tokens.

    Returns:
        `Forecast`: All of it.
    """
    epoch = None if lengths is None else draw_epoch(lengths, cost, recipe, ranks)
    longest_row = recipe.sequence if epoch is None else epoch.longest_row
    tokens = recipe.rows_of_rank * recipe.sequence if epoch is None else epoch.largest_step
    limit = room(gpu_memory)
    plans = fitting_plans(recipe, ranks, tokens, longest_row, limit)
    plan = chosen(plans, tokens) if plans else None
    rows: list[ScalingRow] = []
    if plan is not None and peak is not None:
        rows = scale(recipe, _work(recipe, epoch, plan), peak, links, lengths, cost)
    least = estimate(recipe, ranks, longest_row, layers_kept=0)
    return Forecast(limit, tokens, least, tuple(plans), plan, epoch, tuple(rows))


def _work(recipe: Recipe, epoch: Epoch | None, plan: FittingPlan) -> RankWork:
    pieces, kept = plan.candidate.pieces or recipe.accumulation, plan.candidate.layers_kept
    if epoch is not None:
        return RankWork(epoch.mean_tokens, epoch.mean_squares, pieces, kept)
    full = RowLengths.of_documents(np.full(recipe.rows_of_rank, recipe.sequence, np.int64))
    return RankWork(float(full.tokens.sum()), float(full.squares.sum()), pieces, kept)
