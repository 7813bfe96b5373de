"""What the same recipe would do on other numbers of ranks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..plan.cost import RowCost
from ..plan.lengths import RowLengths
from .communication import Links, exposed_ms
from .epoch import Epoch, draw_epoch
from .recipe import Recipe
from .step_time import RankWork, compute_ms, host_ms


RANKS = (1, 2, 4, 8, 64, 1024)


@dataclass(frozen=True)
class ScalingRow:
    """A step on so many ranks, each with the same number of rows.

    Args:
        ranks (`int`): The ranks.
        rows (`int`): The rows of an optimizer step.
        steps (`int`, *optional*): The optimizer steps of an epoch, if there is a data set that fills one.
        imbalance (`float`, *optional*): The slowest rank over the mean, balanced; None without such a data set.
        compute_ms (`float`): What the slowest rank computes.
        bound_by (`"GPU"` or `"host"`): Who of both takes that long; the host, if it starts kernels too slowly.
        reduction_ms (`float`): What averaging the gradients adds.
        tokens_per_second (`float`): Of all ranks together.
        efficiency (`float`): Tokens a second and rank, relative to one rank.
    """

    ranks: int
    rows: int
    steps: int | None
    imbalance: float | None
    compute_ms: float
    bound_by: Literal["GPU", "host"]
    reduction_ms: float
    tokens_per_second: float
    efficiency: float


def scale(
    recipe: Recipe,
    work: RankWork,
    peak: float,
    links: Links,
    lengths: RowLengths | None,
    cost: RowCost,
    ranks: Sequence[int] = RANKS,
) -> list[ScalingRow]:
    """Computes a row for each number of ranks.

    Args:
        recipe (`Recipe`): What is trained.
        work (`RankWork`): What a rank has in a step on average.
        peak (`float`): The card's dense peak, in FLOP/s.
        links (`Links`): The bandwidths.
        lengths (`RowLengths`, *optional*): The rows of the data set.
        cost (`RowCost`): What rows cost.
        ranks (`Sequence[int]`, *optional*): The numbers of ranks.
    """
    alone = _speed(work, _step_ms(recipe, work, peak, links, 1, 1.0))
    rows = []
    for count in ranks:
        epoch = None if lengths is None else draw_epoch(lengths, cost, recipe, count)
        imbalance = 1.0 if epoch is None else epoch.imbalance
        compute, reduction = _step_ms(recipe, work, peak, links, count, imbalance)
        speed = _speed(work, (compute, reduction))
        rows.append(
            ScalingRow(
                ranks=count,
                rows=recipe.rows_of_rank * count,
                steps=_steps(epoch),
                imbalance=None if epoch is None else epoch.imbalance,
                compute_ms=compute,
                bound_by="host" if compute == host_ms(recipe, work) else "GPU",
                reduction_ms=reduction,
                tokens_per_second=count * speed,
                efficiency=speed / alone,
            )
        )
    return rows


def _step_ms(
    recipe: Recipe, work: RankWork, peak: float, links: Links, ranks: int, imbalance: float
) -> tuple[float, float]:
    slowest = RankWork(imbalance * work.tokens, imbalance * work.squares, work.pieces, work.layers_kept)
    compute = compute_ms(recipe, slowest, peak)
    return compute, exposed_ms(recipe.gradient_bytes, ranks, links, compute)


def _speed(work: RankWork, parts: tuple[float, float]) -> float:
    return 1000 * work.tokens / sum(parts)


def _steps(epoch: Epoch | None) -> int | None:
    return None if epoch is None else epoch.steps
