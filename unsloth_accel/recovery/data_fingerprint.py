"""A fingerprint of the rows that are trained on: the same in every process, and cheap however many there are."""

import hashlib
from typing import Any

from ..data.media import holds_media


# Read to the last token. An inserted or removed row moves those behind it, another tokenizer or template changes all.
SAMPLED_ROWS = 256


def data_fingerprint(dataset: Any) -> dict[str, Any]:
    """Counts the rows of a data set, and hashes some of them.

    The fingerprint that `datasets` keeps is no use here: of rows that were made in memory it is a random number.

    Args:
        dataset (`Any`): The data set that is trained on, after it was prepared.

    Returns:
        `dict[str, Any]`: `rows`, None where nobody knows how many there are; and `sha256` of 256 rows spread evenly,
        None where they are not those of a `datasets.Dataset`, or pictures and sounds alone.
    """
    import datasets

    rows = len(dataset) if hasattr(dataset, "__len__") else None
    return {"rows": rows, "sha256": _hash(dataset) if isinstance(dataset, datasets.Dataset) else None}


def _hash(dataset: Any) -> str | None:
    # Each machine may have pictures and sounds in a folder of its own.
    columns = sorted(name for name, feature in dataset.features.items() if not holds_media(feature))
    if not columns:
        return None
    count = min(len(dataset), SAMPLED_ROWS)
    sampled = [row * (len(dataset) - 1) // max(1, count - 1) for row in range(count)]
    # As Arrow, so that no transform of the user's runs. As Python objects, since equal rows may lie in other buffers.
    table = dataset.select_columns(columns).with_format("arrow")[sampled]
    return hashlib.sha256(repr(table.select(columns).to_pylist()).encode()).hexdigest()
