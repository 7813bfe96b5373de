"""Where a balanced batch sampler goes in a data loader of Accelerate."""

from typing import Any

import numpy as np
from accelerate.data_loader import BatchSamplerShard, DataLoaderShard, get_sampler, skip_first_batches
from torch.utils.data import BatchSampler

from ..errors import ConfigurationError
from .cost import RowCost
from .empty_batches import FillEmptyBatches
from .lengths import RowLengths
from .sampler import BalancedBatchSampler


def balance_batches(
    dataloader: Any, lengths: RowLengths, cost: RowCost, accumulation: int, slots: int | None = None
) -> Any:
    """Balances what a data loader gives to each rank.

    Args:
        dataloader (`DataLoaderShard`):
            What `accelerator.prepare` made of a loader; changed in place where there are several ranks.
        lengths (`RowLengths`):
            The tokens of every row of its data set.
        cost (`RowCost`):
            What rows cost.
        accumulation (`int`):
            The micro-batches of a rank in an optimizer step, as the user asked for them.
        slots (`int`, *optional*, defaults to `accumulation`):
            The batches that a rank gets for an optimizer step, from 1, all its rows in one, to `accumulation`.

    Returns:
        `DataLoaderShard`: The loader to iterate over.

    Raises:
        ConfigurationError: If the loader cannot be balanced: [`why_not_balanced`] says so beforehand.
    """
    reason = why_not_balanced(dataloader, lengths)
    if reason is not None:
        raise ConfigurationError(f"`dataloader` cannot be balanced: {reason}.")
    inner = _inner_batch_sampler(dataloader)
    if not isinstance(dataloader.batch_sampler, BatchSamplerShard):
        dataloader = _with_batch_sampler_inside(dataloader)
    outer = dataloader.batch_sampler
    balanced = BalancedBatchSampler(inner, lengths, cost, getattr(outer, "num_processes", 1), accumulation, slots)
    outer.batch_sampler = balanced
    # BatchSamplerShard read these from the sampler it was made with, and `len` and the end of an epoch depend on them.
    outer.batch_size, outer.drop_last = balanced.batch_size, balanced.drop_last
    if balanced.has_empty_batches:
        _fill_empty_batches(dataloader, lengths)
    return dataloader


def why_not_balanced(dataloader: Any, lengths: RowLengths) -> str | None:
    """What stands against balancing a data loader, if anything does.

    Args:
        dataloader (`DataLoader`): The loader of a trainer.
        lengths (`RowLengths`): The tokens of every row of its data set.
    """
    if not isinstance(dataloader, DataLoaderShard):
        return (
            f"it is a {type(dataloader).__name__}, and only with `dispatch_batches=False` each rank reads its own rows"
        )
    if getattr(dataloader.batch_sampler, "split_batches", False):
        return "`split_batches=True` cuts each batch by row counts"
    inner = _inner_batch_sampler(dataloader)
    if type(inner) is not BatchSampler:
        return f"its rows are dealt by a {type(inner).__name__}"
    if len(lengths) != len(dataloader.dataset):
        return f"the lengths are those of {len(lengths)} rows, and it has {len(dataloader.dataset)}"
    return None


def _inner_batch_sampler(dataloader: Any) -> Any:
    outer = dataloader.batch_sampler
    return outer.batch_sampler if isinstance(outer, BatchSamplerShard) else outer


def _with_batch_sampler_inside(dataloader: Any) -> Any:
    # On one rank there is no BatchSamplerShard, and a DataLoader refuses another batch sampler. One that skips none of
    # the batches of the sampler inside it takes its place; Accelerate reaches the sampler of the rows through both.
    wrapped = skip_first_batches(dataloader, 0)
    wrapped.set_sampler(get_sampler(dataloader))
    return wrapped


def _fill_empty_batches(dataloader: Any, lengths: RowLengths) -> None:
    with_tokens = np.flatnonzero(lengths.tokens)
    shortest = int(with_tokens[lengths.tokens[with_tokens].argmin()])
    loader = dataloader.base_dataloader
    loader.collate_fn = FillEmptyBatches(loader.collate_fn, loader.dataset[shortest])
