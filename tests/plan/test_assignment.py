"""Which rank computes which row of a step: the properties that hold for any rows."""

from itertools import chain

import pytest
from accelerate.data_loader import BatchSamplerShard
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, SequentialSampler

from plan.steps import documents, packed_costs, row_costs, tokens
from unsloth_accel.plan.assignment import assign_rows, rank_costs, split_rows
from unsloth_accel.plan.cost import RowCost


steps = st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4)).flatmap(
    lambda shape: st.tuples(st.just(shape), st.lists(tokens, min_size=1, max_size=shape[0] * shape[1] * shape[2]))
)
full_steps = st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4)).flatmap(
    lambda shape: st.tuples(
        st.just(shape), st.lists(tokens, min_size=(rows := shape[0] * shape[1] * shape[2]), max_size=rows)
    )
)
Step = tuple[tuple[int, int, int], list[int]]


def as_accelerate_deals(rows: int, ranks: int, micro_batches: int) -> list[list[list[int]]]:
    per_rank = rows // ranks // micro_batches
    sampler = BatchSampler(SequentialSampler(range(rows)), per_rank, drop_last=False)
    return [list(BatchSamplerShard(sampler, ranks, rank)) for rank in range(ranks)]


@pytest.mark.soak
@given(steps, row_costs, st.booleans())
def test_every_row_once_and_on_every_rank_as_many_batches(step: Step, cost: RowCost, one_slot: bool) -> None:
    (ranks, micro_batches, _), lengths = step
    plan = assign_rows(documents(lengths), cost, ranks, micro_batches, 1 if one_slot else None)
    assert sorted(chain(*chain(*plan))) == list(range(len(lengths)))
    slots = 1 if one_slot else max(1, min(micro_batches, len(lengths) // ranks))
    assert [len(rank) for rank in plan] == [slots] * ranks
    assert all(rows == sorted(rows) for rank in plan for rows in rank)
    empty = sum(not rows for rank in plan for rows in rank)
    assert empty == max(0, ranks - len(lengths)), "a batch without rows only where there are fewer rows than ranks"


@pytest.mark.soak
@given(full_steps, row_costs)
def test_the_slowest_rank_is_never_slower_than_in_the_order_of_accelerate(step: Step, cost: RowCost) -> None:
    (ranks, micro_batches, _), given_lengths = step
    lengths = documents(given_lengths)
    plan = assign_rows(lengths, cost, ranks, micro_batches)
    plain = as_accelerate_deals(len(lengths), ranks, micro_batches)
    assert max(rank_costs(plan, lengths, cost)) <= max(rank_costs(plain, lengths, cost))


@pytest.mark.soak
@given(full_steps, packed_costs)
def test_one_batch_a_rank_is_never_slower_either(step: Step, cost: RowCost) -> None:
    (ranks, micro_batches, _), given_lengths = step
    lengths = documents(given_lengths)
    plan = assign_rows(lengths, cost, ranks, micro_batches, slots=1)
    plain = as_accelerate_deals(len(lengths), ranks, micro_batches)
    assert max(rank_costs(plan, lengths, cost)) <= max(rank_costs(plain, lengths, cost))


@pytest.mark.parametrize("padded", [False, True])
def test_rows_of_one_length_stay_in_the_order_of_accelerate(padded: bool) -> None:
    plan = assign_rows(documents([512] * 24), RowCost(113, padded), ranks=3, micro_batches=4)
    assert plan == as_accelerate_deals(24, 3, 4)


def test_a_rank_with_a_long_row_gets_fewer() -> None:
    plan = assign_rows(documents([1, 5, 1, 1, 1, 1]), RowCost(), ranks=2, micro_batches=1)
    assert plan == [[[1]], [[0, 2, 3, 4, 5]]]


def test_padded_rows_share_a_batch_with_rows_of_their_length() -> None:
    lengths = documents([2048, 8, 2048, 8, 8, 8, 8, 8])
    plan = assign_rows(lengths, RowCost(padded=True), ranks=2, micro_batches=2)
    assert sorted(chain(*plan)) == [[0], [1, 3, 4], [2], [5, 6, 7]]
    assert [len(rank) for rank in plan] == [2, 2]


@pytest.mark.soak
@given(st.lists(tokens, min_size=1, max_size=24), row_costs, st.integers(1, 8))
def test_pieces_hold_every_row_once_and_none_is_empty(lengths: list[int], cost: RowCost, pieces: int) -> None:
    split = split_rows(documents(lengths), cost, pieces)
    assert sorted(chain(*split)) == list(range(len(lengths)))
    assert len(split) == min(pieces, len(lengths))
    assert all(split)


@pytest.mark.soak
@given(st.lists(tokens, min_size=1, max_size=24), packed_costs, st.integers(1, 8))
def test_pieces_differ_by_less_than_a_row(given_lengths: list[int], cost: RowCost, pieces: int) -> None:
    """The costliest piece was the cheapest one before its last row came."""
    lengths = documents(given_lengths)
    each = cost.of_rows(lengths).tolist()
    costs = [sum(each[row] for row in rows) for rows in split_rows(lengths, cost, pieces)]
    assert max(costs) * len(costs) <= sum(each) + (len(costs) - 1) * max(each)
