"""What each rank gets from a data loader of Accelerate: the rows one rank would get, step by step, and none twice."""

from dataclasses import dataclass
from itertools import chain
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from accelerate.state import GradientState
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Sampler, SequentialSampler

from plan.steps import QUADRATIC_TERMS, documents
from unsloth_accel import ConfigurationError
from unsloth_accel.plan.cost import RowCost
from unsloth_accel.plan.dataloader import balance_batches
from unsloth_accel.plan.lengths import RowLengths


@dataclass(frozen=True)
class Run:
    """A user's arguments, the rows, and the batches of a rank in a step."""

    rows: int
    batch_size: int = 2
    ranks: int = 2
    accumulation: int = 1
    slots: int | None = None
    drop_last: bool = False
    shuffle: bool = True
    data_seed: int = 7
    cost: RowCost = RowCost(QUADRATIC_TERMS[0])

    @property
    def batches_of_step(self) -> int:
        return self.accumulation if self.slots is None else self.slots

    def lengths(self) -> RowLengths:
        return documents(np.random.default_rng(0).integers(8, 2048, self.rows).tolist())


runs = st.builds(
    Run,
    rows=st.integers(1, 70),
    batch_size=st.integers(1, 3),
    ranks=st.integers(1, 5),
    accumulation=st.integers(1, 4),
    slots=st.sampled_from([None, 1]),
    drop_last=st.booleans(),
    shuffle=st.booleans(),
    data_seed=st.integers(0, 100),
    cost=st.builds(RowCost, quadratic=st.sampled_from(QUADRATIC_TERMS), padded=st.booleans()),
)


def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"rows": [row["row"] for row in rows], "labels": torch.tensor([row["row"] for row in rows])}


def plain_loader(run: Run, batch_size: int, ranks: int, rank: int) -> Any:
    """As transformers' Trainer makes it, and as Accelerate prepares it for that rank."""
    torch.manual_seed(3)
    dataset: Any = [{"row": row} for row in range(run.rows)]
    sampler: Sampler[int] = RandomSampler(dataset) if run.shuffle else SequentialSampler(dataset)
    loader = DataLoader(dataset, batch_size, sampler=sampler, drop_last=run.drop_last, collate_fn=collate)
    return prepare_data_loader(
        loader, num_processes=ranks, process_index=rank, use_seedable_sampler=True, data_seed=run.data_seed
    )


def balanced(run: Run, rank: int) -> Any:
    loader = plain_loader(run, run.batch_size, run.ranks, rank)
    return balance_batches(loader, run.lengths(), run.cost, run.accumulation, run.slots)


def epoch(loader: Any, number: int, skip: int = 0) -> list[list[int]]:
    """The rows of each batch of an epoch, those that only fill up an empty batch left out: `Trainer._run_epoch`."""
    loader = skip_first_batches(loader, skip) if skip else loader
    loader.set_epoch(number)
    return [counted(batch) for batch in loader]


def counted(batch: dict[str, Any]) -> list[int]:
    return [row for row, label in zip(batch["rows"], batch["labels"], strict=True) if label != -100]


def by_step(batches: list[list[int]], size: int) -> list[list[int]]:
    return [sorted(chain(*batches[start : start + size])) for start in range(0, len(batches), size)]


@pytest.mark.soak
@given(runs)
def test_every_step_has_the_rows_it_has_on_one_rank(run: Run) -> None:
    one_rank = plain_loader(run, run.ranks * run.batch_size, 1, 0)
    loaders = [balanced(run, rank) for rank in range(run.ranks)]
    for number in (0, 1):
        ranks = [epoch(loader, number) for loader in loaders]
        assert {len(batches) for batches in ranks} == {len(loaders[0])}, "every rank as many batches as it says"
        together = [list(chain(*batches)) for batches in zip(*ranks, strict=True)]
        assert by_step(together, run.batches_of_step) == by_step(epoch(one_rank, number), run.accumulation)
        if not run.drop_last:
            assert sorted(chain(*together)) == list(range(run.rows)), "every row once an epoch"


@pytest.mark.soak
@given(runs, st.data())
def test_a_run_that_resumes_in_an_epoch_goes_on_with_the_rows_it_would_have_had(run: Run, data: st.DataObject) -> None:
    for rank in range(run.ranks):
        expected = epoch(balanced(run, rank), 1)
        skip = data.draw(st.integers(0, len(expected) // run.batches_of_step)) * run.batches_of_step
        assert epoch(balanced(run, rank), 1, skip) == expected[skip:]


def test_each_epoch_and_each_seed_has_an_order_of_its_own() -> None:
    loader = balanced(Run(40), 0)
    orders = [epoch(loader, 0), epoch(loader, 1), epoch(balanced(Run(40, data_seed=99), 0), 0)]
    assert len({str(order) for order in orders}) == 3
    assert epoch(loader, 0) == orders[0]


def test_an_epoch_that_nobody_sets_follows_the_one_before() -> None:
    """As where a user's own loop iterates again."""
    loader, again = balanced(Run(13, ranks=1, drop_last=True), 0), balanced(Run(13, ranks=1, drop_last=True), 0)
    first, second = ([batch["rows"] for batch in loader] for _ in range(2))
    assert (first, second) == (epoch(again, 0), epoch(again, 1))


def test_a_sampler_that_is_set_later_draws_the_rows() -> None:
    """As Accelerate sets the one it finds in a checkpoint."""
    loader = balanced(Run(8, ranks=1), 0)
    loader.set_sampler(SequentialSampler(loader.dataset))
    assert [batch["rows"] for batch in loader] == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_the_ranks_of_a_step_are_balanced() -> None:
    run = Run(320, batch_size=8, ranks=4)
    ranks = [epoch(balanced(run, rank), 0) for rank in range(4)]
    each = run.cost.of_rows(run.lengths())
    costs = np.array([[each[batch].sum() for batch in batches] for batches in ranks])
    assert costs.max(axis=0).sum() / costs.mean(axis=0).sum() < 1.05
    assert len({len(batch) for batches in ranks for batch in batches}) > 1, "by giving long rows fewer neighbours"


def test_a_rank_without_a_row_in_the_last_step_gets_one_that_does_not_count() -> None:
    run = Run(9, ranks=4)
    ranks = [list(balanced(run, rank)) for rank in range(4)]
    last = [batches[-1] for batches in ranks]
    assert [int((batch["labels"] != -100).sum()) for batch in last] == [1, 0, 0, 0]
    shortest = int(run.lengths().tokens.argmin())
    assert [batch["rows"] for batch in last[1:]] == [[shortest]] * 3


def test_no_row_is_taken_for_a_repeated_one_when_metrics_are_gathered() -> None:
    """`gather_for_metrics` cuts the last batch by `remainder`, which is right only where ranks repeat rows."""
    state = GradientState()
    for _ in balanced(Run(9), 0):
        assert state.remainder == -1


def test_rows_of_datasets() -> None:
    dataset: Any = datasets.Dataset.from_dict({"row": range(9)})
    loader = prepare_data_loader(DataLoader(dataset, 2, collate_fn=collate), num_processes=4, process_index=3)
    loader = balance_batches(loader, documents([8] * 9), RowCost(), accumulation=1)
    assert [batch["labels"].tolist() for batch in loader] == [[6, 7], [-100]]


class OwnBatches(BatchSampler):
    pass


@pytest.mark.parametrize(
    ("batches", "prepared", "rows", "slots", "message"),
    [
        (BatchSampler, {"dispatch_batches": True}, 8, 1, r"it is a DataLoaderDispatcher.*`dispatch_batches=False`"),
        (BatchSampler, {"split_batches": True}, 8, 1, "`split_batches=True` cuts each batch by row counts"),
        (OwnBatches, {}, 8, 1, "its rows are dealt by a OwnBatches"),
        (BatchSampler, {}, 7, 1, "the lengths are those of 7 rows, and it has 8"),
        (BatchSampler, {}, 8, 3, r"`slots` must be from 1 to `accumulation`, which is 2, got 3"),
    ],
    ids=["dispatched", "split", "own batches", "other rows", "slots"],
)
def test_what_cannot_be_balanced(
    batches: type[BatchSampler], prepared: dict[str, bool], rows: int, slots: int, message: str
) -> None:
    dataset: Any = range(8)
    sampler = batches(SequentialSampler(dataset), 2, drop_last=False)
    loader: DataLoader[int] = DataLoader(dataset, batch_sampler=sampler)
    ours = prepare_data_loader(
        loader, torch.device("cpu"), num_processes=2, process_index=0, put_on_device=True, **prepared
    )
    with pytest.raises(ConfigurationError, match=message):
        balance_batches(ours, documents([1] * rows), RowCost(), accumulation=2, slots=slots)
