"""Writes a folder beside its place and renames it there, so that no half file ever carries the final name."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


# The weights of a whole model, in one file or in shards, and their index. Of an earlier export they must not stay:
# `from_pretrained` prefers `model.safetensors` to shards, and an index that names missing shards fails.
_WEIGHTS = re.compile(r"(pytorch_)?model(-\d{5}-of-\d{5})?\.(safetensors|bin)(\.index\.json)?")


@contextmanager
def atomic_directory(directory: str | os.PathLike[str]) -> Iterator[str]:
    """Yields a folder of the same name to write into; what lies there, and beside it, is moved into place at the end.

    Unsloth writes to `directory` and, for some formats, to siblings named after it (`<directory>_gguf`), so the
    yielded folder lies alone in `<directory>.incomplete`. A folder that does not exist yet appears whole, by one
    rename. In one that does, files of the same name are replaced, weights of an earlier export are removed and all
    else stays. If the block raises, everything it wrote is removed; if the process is killed, `<directory>.incomplete`
    remains and the next call removes it.

    Args:
        directory (`str` or `os.PathLike`): The folder to write.

    Yields:
        `str`: The folder to write to instead.
    """
    target = Path(os.path.abspath(directory))
    holder = _holder(target)
    shutil.rmtree(holder, ignore_errors=True)
    holder.mkdir(parents=True)
    try:
        yield str(holder / target.name)
        for written in holder.iterdir():
            _move_into_place(written, target.parent / written.name)
    finally:
        shutil.rmtree(holder, ignore_errors=True)


def _holder(target: Path) -> Path:
    """Beside the target; inside it where that is a mounted volume, or all that this user may write to."""
    parent = target.parent
    inside = target.is_dir() and (target.stat().st_dev != parent.stat().st_dev or not os.access(parent, os.W_OK))
    return target / ".incomplete" if inside else parent / f"{target.name}.incomplete"


def _move_into_place(source: Path, target: Path) -> None:
    if source.is_file() or not target.is_dir():
        # A rename where it can be one; between file systems a copy.
        shutil.move(source, target)
        return
    _remove_superseded_weights(target, {file.name for file in source.iterdir()})
    # An index goes last: shards without one are not loadable, an index without its shards is a lie.
    for written in sorted(source.iterdir(), key=lambda path: path.name.endswith(".index.json")):
        _move_into_place(written, target / written.name)


def _remove_superseded_weights(target: Path, new_names: set[str]) -> None:
    if not any(_WEIGHTS.fullmatch(name) for name in new_names):
        return
    # The index first, for the same reason as above.
    old = [file for file in target.iterdir() if _WEIGHTS.fullmatch(file.name)]
    for file in sorted(old, key=lambda path: not path.name.endswith(".index.json")):
        if file.name.endswith(".index.json") or file.name not in new_names:
            file.unlink()
