"""Data sets that lie in memory, written to the cache of `datasets`, where other processes find them."""

import shutil
import uuid
from pathlib import Path

import datasets
from datasets.fingerprint import Hasher


def on_disk(dataset: datasets.Dataset) -> datasets.Dataset:
    """The data set itself if it lies in files, else its copy in the cache; see [`copy_to_cache`].

    Only rows in files can be handed to another process by reference, and only for those does `datasets` find what an
    earlier run has tokenised.

    Args:
        dataset (`datasets.Dataset`): A data set in files or in memory.

    Returns:
        `datasets.Dataset`: The same rows, in files, in the same format.
    """
    if dataset.cache_files:
        return dataset
    copy = copy_to_cache(dataset)
    copy.set_format(**format_arguments(dataset), **dataset.format["format_kwargs"])
    return copy


def copy_to_cache(dataset: datasets.Dataset) -> datasets.Dataset:
    """The same rows without a format, from a folder of the cache that is named by their content.

    Args:
        dataset (`datasets.Dataset`): Any rows.

    Returns:
        `datasets.Dataset`: A data set in whole files.
    """
    key = Hasher.hash((dataset.with_format("arrow")[:], dataset.features))
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "unsloth_accel" / key
    if not folder.exists():
        _save(dataset.with_format(None), folder)  # the arguments of a format may be what JSON cannot hold: a dtype
    return datasets.load_from_disk(str(folder))


def format_arguments(dataset: datasets.Dataset) -> dict[str, object]:
    """What `set_format` takes to give another data set the format of this one, but for the formatter's own arguments.

    Args:
        dataset (`datasets.Dataset`): In any format.

    Returns:
        `dict`: `type`, `columns` and `output_all_columns`; JSON can hold it.
    """
    columns = dataset.format["columns"]
    return {
        "type": dataset.format["type"],
        "columns": None if columns == dataset.column_names else columns,
        "output_all_columns": dataset.format["output_all_columns"],
    }


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
