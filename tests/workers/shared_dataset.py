"""Each kind of data set that `map` and `filter` make, on one rank of two: python shared_dataset.py OUT FILE FILE."""

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import torch
import torch.distributed as dist
from start import RANK, write_result

from unsloth_accel.data.disk_cache import on_disk
from unsloth_accel.data.node_shared_dataset import share


def measure(row: dict[str, Any]) -> dict[str, int]:
    assert RANK == 0, "one rank of the node transforms"
    return {"length": len(row["text"])}


def is_even(row: dict[str, Any]) -> bool:
    assert RANK == 0, "one rank of the node transforms"
    return row["number"] % 2 == 0


def nothing(row: dict[str, Any]) -> None:
    assert RANK == 0, "one rank of the node transforms"


def measure_uncached(rows: datasets.Dataset) -> datasets.Dataset:
    datasets.disable_caching()
    try:
        return rows.map(measure)
    finally:
        datasets.enable_caching()


def described(rows: datasets.Dataset) -> dict[str, Any]:
    return {
        "rows": rows.with_format(None)[:],
        "one": str(rows[0]) if len(rows) else None,
        "format": str(rows.format),
        "features": str(rows.features),
        "fingerprint": rows._fingerprint,
    }


out, *files = sys.argv[1:]
dist.init_process_group("gloo")
whole = datasets.load_dataset("json", data_files=files[0], split="train")
both = datasets.concatenate_datasets([whole, datasets.load_dataset("json", data_files=files[1], split="train")])
memory = on_disk(datasets.Dataset.from_dict({"text": ["a", "bb", "ccc"], "number": [0, 1, 2]}))
as_floats = whole.with_format("torch", columns=["number"], output_all_columns=True, dtype=torch.float64)
renamed = whole.rename_column("text", "words").rename_column("words", "text").select(range(3, 9))
extended = whole.add_column("more", [str(number) for number in range(len(whole))])
lock = threading.Lock()  # what `datasets` cannot hash

KINDS: dict[str, tuple[datasets.Dataset, Callable[[datasets.Dataset], datasets.Dataset]]] = {
    "mapped": (whole, lambda rows: rows.map(measure)),
    "of two files, mapped": (both, lambda rows: rows.map(measure)),
    "of two files, filtered": (both, lambda rows: rows.filter(is_even)),
    "mapped into shards": (whole, lambda rows: rows.map(measure, num_proc=2)),
    "filtered by two processes": (whole, lambda rows: rows.filter(is_even, num_proc=2)),
    "selected, mapped": (whole.select([7, 2, 5]), lambda rows: rows.map(measure)),
    "shuffled, filtered": (whole.shuffle(seed=0), lambda rows: rows.filter(is_even)),
    "filtered twice": (whole, lambda rows: rows.filter(is_even).filter(is_even)),
    "filtered to nothing": (whole, lambda rows: rows.filter(is_even).filter(lambda row: row["number"] > 100)),
    "as tensors of doubles, mapped": (as_floats, lambda rows: rows.map(measure)),
    "as tensors of doubles, filtered": (as_floats, lambda rows: rows.filter(is_even)),
    "with a function for a format": (whole.with_transform(dict), lambda rows: rows.map(measure)),
    "renamed and cut, filtered": (renamed, lambda rows: rows.filter(is_even)),
    "partly in memory, filtered": (extended, lambda rows: rows.filter(is_even)),
    "from memory": (memory, lambda rows: rows.map(measure)),
    "kept in memory": (whole, lambda rows: rows.map(measure, keep_in_memory=True)),
    "only looked at": (whole.select([3, 1]), lambda rows: rows.map(nothing)),
    "not hashable": (whole, lambda rows: rows.map(lambda row: measure(row) if not lock.locked() else None)),
    "not cached": (whole, measure_uncached),
}

seen = {}
for name, (source, transform) in KINDS.items():
    seen[name] = {"shared": described(transform(share(source)))}
    if RANK == 0:
        seen[name]["stock"] = described(transform(source))
write_result(Path(out), seen)
dist.barrier()  # what is not cached lies in a temporary folder of rank 0, which goes with it
