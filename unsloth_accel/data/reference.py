"""A data set as JSON: not its rows, but the files that hold them, for another process on the same machine.

Both processes hold the data set that was transformed. What `map` or `filter` made of it is named relative to that: new
files, or the same rows, of which a mapping of indices, in a file too, selects some.
"""

from typing import Any

import datasets
from datasets.table import MemoryMappedTable, Table, concat_tables, list_table_cache_files

from .disk_cache import copy_to_cache, format_arguments


OWN = "own"


def reference_to(result: datasets.Dataset, source: datasets.Dataset) -> dict[str, Any]:
    """Names what `map` or `filter` made of a data set.

    Args:
        result (`datasets.Dataset`): What a transformation returned. What lies in no files is copied to the cache.
        source (`datasets.Dataset`): What was transformed.

    Returns:
        `dict`: For [`dataset_from`]; JSON can hold it.
    """
    rows, indices = _files_of(result.data, source.data), _files_of(result._indices, source._indices)
    if rows is None or indices is None:
        rows, indices = _files_of(copy_to_cache(result).data, None), []
    return {
        "rows": rows,
        "indices": indices,
        "features": result.features.to_dict(),
        "format": format_arguments(result),
        "fingerprint": result._fingerprint,
    }


def dataset_from(reference: dict[str, Any], source: datasets.Dataset) -> datasets.Dataset:
    """Loads what another process made of the same data set.

    Args:
        reference (`dict`): From [`reference_to`].
        source (`datasets.Dataset`): What was transformed, as this process holds it.

    Returns:
        `datasets.Dataset`: The same rows, format, features and fingerprint.
    """
    info = source.info.copy()
    info.features = datasets.Features.from_dict(reference["features"])
    result = datasets.Dataset(
        _table(reference["rows"], source.data),
        info=info,
        split=source.split,
        indices_table=_table(reference["indices"], source._indices),
    )
    # The formatter's own arguments, as a dtype or a function, are those of the source, as in `datasets` itself.
    result.set_format(**reference["format"], **source.format["format_kwargs"])
    result._fingerprint = reference["fingerprint"]
    return result


def _files_of(table: Table | None, own: Table | None) -> list[str] | str | None:
    """The files that hold exactly this table (none for no table), `OWN`, or None where it is not in whole files."""
    if table is None:
        return []
    if own is not None and table.table is own.table:
        return OWN
    files: list[str] = list_table_cache_files(table)
    whole = _table(files, None)
    # No file counts for more rows than it has, so if the sums agree nothing was cut; renamed or dropped columns and
    # those that were added in memory show in the schema.
    same = whole is not None and whole.num_rows == table.num_rows and whole.schema.equals(table.schema)
    return files if same else None


def _table(files: list[str] | str, own: Table | None) -> Table | None:
    if files == OWN:
        return own
    return concat_tables([MemoryMappedTable.from_file(file) for file in files]) if files else None
