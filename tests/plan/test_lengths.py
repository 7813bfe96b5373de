"""The lengths that are read from Arrow are those of the rows, in the order in which they are drawn."""

import tracemalloc
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from unsloth_accel.plan.lengths import ROWS_AT_ONCE, RowLengths, row_lengths


pytestmark = pytest.mark.usefixtures("model_libraries")

ROWS = 2 * ROWS_AT_ONCE + 17
LENGTHS = np.random.default_rng(0).integers(1, 60, ROWS).tolist()


@pytest.fixture(scope="module")
def rows() -> datasets.Dataset:
    ids = [list(range(length)) for length in LENGTHS]
    return datasets.Dataset.from_dict({"text": [""] * ROWS, "input_ids": ids})


def known(dataset: datasets.Dataset, max_length: int | None = None) -> RowLengths:
    lengths, reason = row_lengths(dataset, max_length)
    assert reason == ""
    assert lengths is not None
    return lengths


def expected(dataset: datasets.Dataset) -> list[int]:
    return [len(row["input_ids"]) for row in dataset.with_format(None)]


def test_rows_in_memory_and_in_files(rows: datasets.Dataset, tmp_path: Path) -> None:
    assert known(rows).tokens.tolist() == LENGTHS
    rows.save_to_disk(tmp_path / "rows", num_shards=3)
    assert known(datasets.load_from_disk(tmp_path / "rows")).tokens.tolist() == LENGTHS


def test_rows_that_were_moved(rows: datasets.Dataset) -> None:
    for moved in (
        rows.shuffle(seed=1),
        rows.select([5, 3, 3, 2016]),
        rows.select(range(990, 1020)),
        rows.shard(3, 1),
        datasets.concatenate_datasets([rows.select(range(7)), rows.shuffle(seed=2)]),
        rows.with_format("torch"),
        rows.cast_column("input_ids", datasets.LargeList(datasets.Value("int32"))),
    ):
        assert known(moved).tokens.tolist() == expected(moved)


def test_no_rows(rows: datasets.Dataset) -> None:
    assert len(known(rows.select([]))) == 0


def test_a_row_is_one_document_cut_to_what_the_collator_leaves(rows: datasets.Dataset) -> None:
    lengths = known(rows, max_length=16)
    assert lengths.tokens.tolist() == [min(length, 16) for length in LENGTHS]
    assert lengths.squares.tolist() == [min(length, 16) ** 2 for length in LENGTHS]


def test_the_documents_of_a_row_that_trl_packed(rows: datasets.Dataset) -> None:
    from trl import pack_dataset

    packed = pack_dataset(rows.select_columns(["input_ids"]), seq_length=128)
    for dataset in (packed, packed.shuffle(seed=3), packed.select(range(11, 29))):
        lengths = known(dataset, max_length=64)  # which no collator enforces on packed rows
        assert lengths.tokens.tolist() == expected(dataset)
        assert lengths.squares.tolist() == [sum(n * n for n in row["seq_lengths"]) for row in dataset]
    assert any(len(row["seq_lengths"]) > 1 for row in packed)


def test_tokens_do_not_become_python_objects() -> None:
    tokens = np.zeros((500, 2000), np.int32)
    dataset = datasets.Dataset.from_dict({"input_ids": list(tokens)})
    tracemalloc.start()
    known(dataset)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < tokens.size, "a list holds 8 bytes for each"


@pytest.mark.parametrize(
    ("dataset", "reason"),
    [
        (datasets.Dataset.from_dict({"input_ids": [[1]]}).to_iterable_dataset(), "iterable data set"),
        ([{"input_ids": [1]}], "rows of a list"),
        (torch.utils.data.TensorDataset(torch.ones(2)), "rows of a TensorDataset"),
        (datasets.Dataset.from_dict({"text": ["a"]}), "no column `input_ids`"),
        (datasets.Dataset.from_dict({"input_ids": [[1]]}).with_transform(dict), "transform"),
        (datasets.Dataset.from_dict({"input_ids": [[1]], "image": [Image.new("L", (1, 1))]}), "`image`"),
        (
            datasets.Dataset.from_dict(
                {"input_ids": [[1]], "views": [[Image.new("L", (1, 1))]]},
                features=datasets.Features(
                    {"input_ids": datasets.List(datasets.Value("int32")), "views": datasets.List(datasets.Image())}
                ),
            ),
            "`views`",
        ),
    ],
    ids=["iterable", "list", "tensors", "text", "transform", "image", "images"],
)
def test_why_lengths_are_not_known(dataset: object, reason: str) -> None:
    lengths, why = row_lengths(dataset)
    assert lengths is None
    assert reason in why
