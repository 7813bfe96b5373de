"""A data set whose `map` and `filter` run on one rank of each node; the others of the node load the result."""

import copy
import logging
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast
from weakref import WeakSet

import datasets
from datasets.fingerprint import Hasher

from ..ranks.environment import local_rank
from ..ranks.run_once import run_once


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
        name = kwargs.get("desc") or "mapping a data set"
        label = (self._fingerprint, getattr(function, "__qualname__", type(function).__qualname__), name)
        of_worker, result = run_once(lambda: (label, on_disk(transform(plain))), name=name, scope="node")
        if of_worker != label:
            # Ranks that were given different rows keep their own, as they would without us.
            if local_rank() == 1:
                logger.warning("%s: the ranks were given different rows, so each works on its own.", name)
            result = transform(plain)
        return share(result)


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


def on_disk(dataset: datasets.Dataset) -> datasets.Dataset:
    """The data set itself if it lies in files, else a copy in the cache of `datasets`, named by its content.

    Only rows in files can be handed to another process by reference, and only for those does `datasets` find what an
    earlier run has tokenised.

    Args:
        dataset (`datasets.Dataset`): A data set in files or in memory.

    Returns:
        `datasets.Dataset`: The same rows, in files.
    """
    if dataset.cache_files:
        return dataset
    key = Hasher.hash((dataset.with_format("arrow")[:], dataset.features, dataset.format))
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "unsloth_accel" / key
    if not folder.exists():
        _save(dataset, folder)
    return datasets.load_from_disk(str(folder))


def _save(dataset: datasets.Dataset, folder: Path) -> None:
    """Beside, then renamed: the folder is complete or not there. Of two ranks that save at once, either's is right."""
    beside = folder.with_name(f"{folder.name}.incomplete-{uuid.uuid4().hex}")
    try:
        dataset.save_to_disk(beside)
        beside.rename(folder)
    except OSError:
        if not folder.exists():
            raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
