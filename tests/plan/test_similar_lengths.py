"""Padded batches, against the best of all ways to cut the sorted rows."""

from itertools import chain, combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plan.steps import documents, padded_costs, tokens
from unsloth_accel.plan.cost import RowCost
from unsloth_accel.plan.similar_lengths import deal_in_rounds, similar_lengths


few_rows = st.integers(1, 4).flatmap(
    lambda batches: st.tuples(st.lists(tokens, min_size=batches, max_size=9), st.just(batches))
)


@pytest.mark.soak
@given(few_rows, padded_costs)
def test_no_way_to_cut_the_sorted_rows_has_a_cheaper_costliest_batch(
    drawn: tuple[list[int], int], cost: RowCost
) -> None:
    given_lengths, batches = drawn
    lengths = documents(sorted(given_lengths, reverse=True))
    cuts = [(0, *inner, len(lengths)) for inner in combinations(range(1, len(lengths)), batches - 1)]
    best = min(
        max(cost.of_batch(lengths[start:end]) for start, end in zip(cut, cut[1:], strict=False)) for cut in cuts
    )
    found = similar_lengths(lengths, cost, batches)
    assert sorted(chain(*found)) == list(range(len(lengths)))
    assert len(found) == batches
    assert all(found)
    # A row of no tokens has to cost something where costs are divided.
    assert max(cost.of_batch(lengths[rows]) for rows in found) <= max(best, len(lengths))


@pytest.mark.soak
@given(st.integers(1, 6), st.integers(1, 6), st.data())
def test_every_rank_gets_as_many_batches(ranks: int, slots: int, data: st.DataObject) -> None:
    costs = data.draw(st.lists(st.integers(0, 1 << 40), min_size=ranks * slots, max_size=ranks * slots))
    dealt = deal_in_rounds(costs, ranks)
    assert [len(batches) for batches in dealt] == [slots] * ranks
    assert sorted(chain(*dealt)) == list(range(ranks * slots))


def test_the_costliest_of_a_round_goes_to_the_cheapest_rank() -> None:
    assert deal_in_rounds([9, 1, 5, 4], 2) == [[0, 1], [2, 3]]
