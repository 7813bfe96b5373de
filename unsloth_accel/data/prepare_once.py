"""One rank of each node tokenises; the others load what it wrote."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

from ..patching import replace_attribute, undo_all
from ..ranks.environment import is_distributed
from ..ranks.run_once import run_once


D = TypeVar("D")


def prepare_once(prepare: Callable[[Any], D], dataset: Any) -> D:
    """Runs a trainer's data preparation so that each `map` and `filter` in it happens on one rank per node.

    Every rank runs `prepare`, which may set things on the trainer besides (Unsloth's sets the collator). The data set
    it gets does its transformations once per node; see [`NodeSharedDataset`]. `datasets` caches each by content:
    rows, function, tokenizer and arguments, so a second run tokenises nothing. The result shares, too: what Unsloth's
    `train_on_responses_only` maps later also runs once.

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
    with _nobody_goes_first():
        return prepare(share(on_disk(dataset)))


@contextmanager
def _nobody_goes_first() -> Iterator[None]:
    """TRL prepares under Accelerate's `main_process_first`, where the ranks wait for each other in collectives.

    https://github.com/huggingface/accelerate/blob/main/src/accelerate/state.py: without try / finally there, a first
    rank that raises leaves the others waiting.
    """
    from accelerate import PartialState

    def at_once(self: PartialState) -> Any:
        return nullcontext()

    names = ("main_process_first", "local_main_process_first")
    undos = [replace_attribute(PartialState, name, at_once) for name in names]
    try:
        yield
    finally:
        undo_all(undos)
