"""A data set whose `map` and `filter` run on one rank of each node; the others of the node load the result."""

import copy
import logging
from collections.abc import Callable
from typing import Any, TypeVar, cast
from weakref import WeakSet

import datasets

from ..ranks.environment import local_rank
from ..ranks.run_once import run_once
from .reference import dataset_from, reference_to


K = TypeVar("K", bound=datasets.Dataset)

logger = logging.getLogger(__name__)

# Those that are alive.
_shared: "WeakSet[NodeSharedDataset]" = WeakSet()


class NodeSharedDataset(datasets.Dataset):
    """A `datasets.Dataset` that each rank holds and that is transformed once per node.

    All ranks make the same calls in the same order, as they do with any data set. The first rank of the node
    transforms into a file; what the others get is a reference to that file, memory-mapped, so the rows are the same.
    Other methods are those of `datasets.Dataset`.
    """

    def map(self, function: Callable[..., Any] | None = None, *args: Any, **kwargs: Any) -> "NodeSharedDataset":
        """As `datasets.Dataset.map`, once per node."""
        return self._once(function, kwargs, lambda plain: plain.map(function, *args, **kwargs))

    def filter(self, function: Callable[..., Any] | None = None, *args: Any, **kwargs: Any) -> "NodeSharedDataset":
        """As `datasets.Dataset.filter`, once per node."""
        return self._once(function, kwargs, lambda plain: plain.filter(function, *args, **kwargs))

    def _once(self, function: Any, kwargs: dict[str, Any], transform: Callable[[Any], Any]) -> "NodeSharedDataset":
        plain = _as(datasets.Dataset, self)
        description = kwargs.get("desc") or "mapping a data set"
        call = [self._fingerprint, getattr(function, "__qualname__", type(function).__qualname__), description]
        of_worker: dict[str, Any] = run_once(
            lambda: {"call": call, "result": reference_to(transform(plain), plain)},
            # With the description: TRL's DPO lets rank 0 alone write log probabilities, which no other rank awaits.
            key=f"transform_dataset: {description}",
            description=description,
            scope="node",
        )
        if of_worker["call"] == call:
            return share(dataset_from(of_worker["result"], plain))
        # Ranks that were given different rows keep their own, as they would without us.
        if local_rank() == 1:
            logger.warning("%s: the ranks were given different rows, so each works on its own.", description)
        return share(transform(plain))


def share(dataset: datasets.Dataset) -> NodeSharedDataset:
    """The same rows as a [`NodeSharedDataset`]; nothing is copied."""
    shared = _as(NodeSharedDataset, dataset)
    _shared.add(shared)
    return shared


def is_in_use() -> bool:
    """Whether this process holds a [`NodeSharedDataset`]."""
    return bool(_shared)


def _as(kind: type[K], dataset: datasets.Dataset) -> K:
    # The constructor of Dataset would drop the format, and takes private parts.
    converted: Any = copy.copy(dataset)
    converted.__class__ = kind
    return cast(K, converted)
