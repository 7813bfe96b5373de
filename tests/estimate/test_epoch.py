"""An epoch over drawn lengths."""

import numpy as np
import pytest

from estimate.recipes import recipe
from unsloth_accel.estimate.epoch import draw_epoch
from unsloth_accel.plan.cost import RowCost
from unsloth_accel.plan.lengths import RowLengths


COST = RowCost(quadratic=113)


def lengths(rows: int) -> RowLengths:
    drawn = np.random.default_rng(1).lognormal(5.8, 0.9, rows)
    return RowLengths.of_documents(np.clip(drawn, 8, 2048).astype(np.int64))


def test_rows_of_one_length_have_no_padding_and_load_all_ranks_alike() -> None:
    rows = RowLengths.of_documents(np.full(100, 500, np.int64))
    epoch = draw_epoch(rows, COST, recipe(), ranks=2)
    assert epoch is not None
    assert (epoch.steps, epoch.tokens, epoch.longest_row) == (7, 50_000, 500), "the last step has four rows"
    assert (epoch.padding, epoch.imbalance, epoch.plain_imbalance) == (0.0, 1.0, 1.0)
    assert (epoch.largest_step, epoch.mean_tokens, epoch.mean_squares) == (4000, 4000.0, 8 * 500.0**2)


def test_padding_is_what_fills_each_row_of_a_batch_to_its_longest() -> None:
    rows = RowLengths.of_documents(np.array([100, 300], np.int64))
    epoch = draw_epoch(rows, COST, recipe(rows=2, accumulation=1), ranks=1)
    assert epoch is not None
    assert epoch.padding == pytest.approx(1 - 400 / 600)


def test_balanced_ranks_are_more_even_than_rows_in_their_order() -> None:
    epoch = draw_epoch(lengths(5000), COST, recipe(), ranks=4)
    assert epoch is not None
    assert epoch.imbalance < 1.01
    assert epoch.plain_imbalance > 1.2
    assert epoch.largest_step >= epoch.mean_tokens


def test_one_rank_has_nobody_to_wait_for() -> None:
    epoch = draw_epoch(lengths(1000), COST, recipe(), ranks=1)
    assert epoch is not None
    assert epoch.imbalance == epoch.plain_imbalance == 1.0


def test_a_data_set_of_less_than_a_step_says_nothing() -> None:
    assert draw_epoch(lengths(15), COST, recipe(), ranks=2) is None
    assert draw_epoch(lengths(16), COST, recipe(), ranks=2) is not None
