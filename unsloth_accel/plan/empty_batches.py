"""A batch for a rank that has no row to compute, so that it takes part in the step and adds nothing."""

import copy
from collections.abc import Callable
from typing import Any

import torch

from ..errors import ConfigurationError


IGNORED = -100


class FillEmptyBatches:
    """A collator that makes of no rows a batch whose labels are all ignored, and of others what it wraps makes.

    An empty list of indices passes through every map-style data set, so the data loader needs no marked index. The
    loss of such a batch is zero where it is a sum over labels divided by those of the whole step, as with
    `num_items_in_batch`; a mean over no label would not be a number.

    Args:
        collate_fn (`Callable`): The collator of the data loader.
        row (`dict`): A row whose tokens are computed in place of none; a short one costs least.
    """

    def __init__(self, collate_fn: Callable[[list[Any]], Any], row: dict[str, Any]) -> None:
        self._collate_fn = collate_fn
        self._row = row

    def __call__(self, rows: list[Any]) -> Any:
        if rows:
            return self._collate_fn(rows)
        batch = self._collate_fn([copy.copy(self._row)])  # a collator may take keys out of its rows
        if "labels" not in batch:
            raise ConfigurationError(
                f"`collate_fn` makes batches of {', '.join(batch)} without labels, so that a row that only fills up "
                "the last step would count. Set `dataloader_drop_last=True`, or use fewer ranks."
            )
        batch["labels"] = torch.full_like(batch["labels"], IGNORED)
        return batch
