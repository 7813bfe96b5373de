"""The same rows on each of more and more ranks."""

import numpy as np
import pytest

from estimate.recipes import recipe
from unsloth_accel.estimate.communication import Links
from unsloth_accel.estimate.scaling import RANKS, scale
from unsloth_accel.estimate.step_time import RankWork
from unsloth_accel.plan.cost import RowCost
from unsloth_accel.plan.lengths import RowLengths


WORK = RankWork(16_384, 8 * 2048.0**2, 1, 28)
PEAK = 989.5e12


def test_the_table_has_1_to_1024_ranks_and_loses_what_communication_takes() -> None:
    rows = scale(recipe(), WORK, PEAK, Links(), None, RowCost())
    assert [row.ranks for row in rows] == [1, 2, 4, 8, 64, 1024]
    assert rows[0].efficiency == 1.0
    assert rows[0].reduction_ms == 0.0
    for row in rows:
        step = row.compute_ms + row.reduction_ms
        assert row.tokens_per_second == pytest.approx(1000 * row.ranks * 16_384 / step)
        assert row.efficiency == pytest.approx(rows[0].compute_ms / step)
    assert [row.reduction_ms for row in rows] == sorted(row.reduction_ms for row in rows)
    assert rows[-1].bound_by == "GPU"


def test_uneven_rows_cost_what_the_slowest_rank_takes_where_the_data_set_fills_a_step() -> None:
    drawn = np.random.default_rng(1).lognormal(5.8, 0.9, 1000)
    lengths = RowLengths.of_documents(np.clip(drawn, 8, 2048).astype(np.int64))
    rows = scale(recipe(), WORK, PEAK, Links(), lengths, RowCost(), RANKS)
    assert [row.steps for row in rows] == [125, 63, 32, 16, 2, None]
    even = scale(recipe(), WORK, PEAK, Links(), None, RowCost(), RANKS)
    for uneven, plain in zip(rows[:-1], even, strict=False):
        assert uneven.compute_ms == pytest.approx((uneven.imbalance or 0) * plain.compute_ms)
    assert rows[-1].imbalance is None
    assert rows[-1].compute_ms == even[-1].compute_ms


def test_a_step_of_few_tokens_is_bound_by_the_host() -> None:
    rows = scale(recipe(), RankWork(100, 100.0, 1, 28), PEAK, Links(), None, RowCost())
    assert {row.bound_by for row in rows} == {"host"}
