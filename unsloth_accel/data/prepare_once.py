"""One rank of each node tokenises; the others load what it wrote."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from ..ranks.environment import is_distributed
from ..ranks.run_once import run_once


D = TypeVar("D")

_preparing = False


def prepare_once(prepare: Callable[[Any], D], dataset: Any) -> D:
    """Runs a trainer's data preparation so that each `map` and `filter` in it happens on one rank per node.

    Every rank runs `prepare`, which may set things on the trainer besides (Unsloth's sets the collator). The data set
    it gets does its transformations once per node; see [`NodeSharedDataset`]. `datasets` caches each by content:
    rows, function, tokenizer and arguments, so a second run tokenises nothing. The result shares, too: what Unsloth's
    `train_on_responses_only` maps later also runs once.

    TRL prepares inside Accelerate's `main_process_first`, where ranks wait for each other in a collective. Apply the
    fix of that name around this call, as our trainers do: it lets all ranks in at once while data are prepared here.

    Args:
        prepare (`Callable`): Takes the data set and returns it ready for training.
        dataset (`datasets.Dataset`): The rows, in files or in memory. Anything else, as a streaming data set, goes to
            `prepare` as it is, and so does everything when there is one rank.

    Returns:
        What `prepare` returned.

    Raises:
        PeerError: On the other ranks of the node, if the first one fails or dies.
    """
    import datasets

    if not is_distributed() or not isinstance(dataset, datasets.Dataset) or dataset.format["type"] == "custom":
        return prepare(dataset)
    from .disk_cache import on_disk
    from .node_shared_dataset import share

    # The first rank writes; the others then find the file by the same content.
    run_once(
        lambda: bool(on_disk(dataset)),
        key="write_dataset",
        description="writing the data set to the cache",
        scope="node",
    )
    with _preparation():
        return prepare(share(on_disk(dataset)))


@contextmanager
def _preparation() -> Iterator[None]:
    global _preparing
    _preparing = True
    try:
        yield
    finally:
        _preparing = False


def is_preparing() -> bool:
    """Whether [`prepare_once`] is at work in this process, and orders the ranks itself."""
    return _preparing
