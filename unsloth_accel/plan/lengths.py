"""How many tokens each row has, known before any row is read."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ..data.media import holds_media


IntArray = npt.NDArray[np.int64]

# Rows of a table that is looked at as one: a shuffled data set is gathered that many rows at a time.
ROWS_AT_ONCE = 1000


@dataclass(frozen=True)
class RowLengths:
    """The tokens of rows.

    Args:
        tokens (`numpy.ndarray` of `int64`): The tokens of each row.
        squares (`numpy.ndarray` of `int64`): Of each row the sum of its documents' tokens squared, because a token
            attends only to its own document; a row that is not packed is one document.
    """

    tokens: IntArray
    squares: IntArray

    @classmethod
    def of_documents(cls, tokens: IntArray) -> "RowLengths":
        """Rows that are one document each."""
        return cls(tokens, tokens * tokens)

    @classmethod
    def unknown(cls, rows: int) -> "RowLengths":
        """Rows that count alike, because nobody knows how long they are."""
        return cls.of_documents(np.ones(rows, np.int64))

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: Any) -> "RowLengths":
        """The rows of these indices."""
        return RowLengths(self.tokens[rows], self.squares[rows])


def row_lengths(dataset: Any, max_length: int | None = None) -> tuple[RowLengths | None, str]:
    """Reads the lengths of the rows that a data set holds, from Arrow's offsets: no token becomes a Python object.

    Args:
        dataset (`Any`): The data set that is trained on, after it was prepared.
        max_length (`int`, *optional*): What the collator cuts a row to; `None` where it does not.

    Returns:
        `tuple[RowLengths | None, str]`: The lengths, or `None` and the reason why they are not known in advance.
    """
    reason = _unknown(dataset)
    if reason:
        return None, reason
    tokens = _of_tables(dataset, "input_ids", _list_lengths)
    if "seq_lengths" in dataset.column_names:  # packed by TRL to their length, so that no collator cuts them
        return RowLengths(tokens, _of_tables(dataset, "seq_lengths", _sums_of_squares)), ""
    return RowLengths.of_documents(tokens if max_length is None else np.minimum(tokens, max_length)), ""


def _unknown(dataset: Any) -> str:
    """Why the lengths are not known, or an empty string."""
    if isinstance(dataset, datasets.IterableDataset):
        return "an iterable data set has no rows to choose from"
    if not isinstance(dataset, datasets.Dataset):
        return f"the rows of a {type(dataset).__name__} are known only when they are read"
    if dataset.format["type"] == "custom":
        return "a transform makes the rows when they are read"
    images = [name for name, feature in dataset.features.items() if holds_media(feature)]
    if images:
        return f"the column `{images[0]}` becomes tokens when it is collated"
    if "input_ids" not in dataset.column_names:
        return "the data set has no column `input_ids`, so its rows are tokenised when they are collated"
    return ""


def _of_tables(dataset: datasets.Dataset, column: str, measure: Callable[[pa.ChunkedArray], IntArray]) -> IntArray:
    rows = dataset.select_columns([column]).with_format("arrow")
    parts = [measure(table.column(column)) for table in rows.iter(ROWS_AT_ONCE)]
    return np.concatenate([np.zeros(0, np.int64), *parts])


def _list_lengths(column: pa.ChunkedArray) -> IntArray:
    return np.asarray(pc.list_value_length(column).to_numpy(), np.int64)


def _sums_of_squares(column: pa.ChunkedArray) -> IntArray:
    documents = _list_lengths(column)
    ends = np.cumsum(documents)
    tokens = pc.list_flatten(column).to_numpy().astype(np.int64)
    sums = np.concatenate([[0], np.cumsum(tokens * tokens)])
    return np.asarray(sums[ends] - sums[ends - documents], np.int64)
