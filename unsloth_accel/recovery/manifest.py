"""The manifest of a checkpoint: what is in it, so that a damaged one is known before it is loaded."""

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import xxhash


MANIFEST_NAME = "manifest.json"
# What fits into a core's cache.
_CHUNK_BYTES = 2**20
# A large file has a sum for each piece, so that several cores have work. More than four read no faster from memory.
_PIECE_BYTES = 2**25
_THREADS = 4


def write_manifest(folder: Path, facts: Mapping[str, Any]) -> None:
    """Writes `manifest.json` about all files below `folder`, with a checksum of its own content.

    Args:
        folder (`Path`): The checkpoint, with all its files.
        facts (`Mapping[str, Any]`): What else the manifest says; JSON must be able to hold it.
    """
    found = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    files = {
        file.relative_to(folder).as_posix(): {"bytes": file.stat().st_size, "xxh3_128": pieces}
        for file, pieces in zip(found, _hash_files(found), strict=True)
    }
    manifest = {**facts, "files": files}
    signed = {"manifest": manifest, "sha256": _hash_content(manifest)}
    with (folder / MANIFEST_NAME).open("w") as manifest_file:
        # Without a newline at the end: every byte counts, so a cut is seen.
        manifest_file.write(json.dumps(signed, indent=1))
        manifest_file.flush()
        os.fsync(manifest_file.fileno())
    sync_directory(folder)


def sync_directory(folder: Path) -> None:
    """Waits until the names in a folder are on the disk.

    Together with the manifest's bytes that is enough: if a machine loses power, a checkpoint that has its name has its
    manifest, which shows what else was lost. The weights are left to the system, because to wait for gigabytes would
    hold training up at every save.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems cannot do that for a folder. PostgreSQL goes on, too,
        # https://github.com/postgres/postgres/blob/master/src/common/file_utils.c
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def read_facts(folder: Path) -> dict[str, Any] | None:
    """What the manifest of a checkpoint says of its run; None where it has none, as one of stock transformers."""
    file = folder / MANIFEST_NAME
    return dict(json.loads(file.read_text())["manifest"]) if file.is_file() else None


def find_damage(folder: Path) -> str | None:
    """Compares the files of a checkpoint with its manifest: their sizes first, then their checksums.

    Args:
        folder (`Path`): A checkpoint with a `manifest.json`.

    Returns:
        `str`, *optional*: What is wrong, with the name of the file; None if nothing is.
    """
    try:
        signed = json.loads((folder / MANIFEST_NAME).read_text())
    except ValueError as error:  # no JSON, or no text
        return f"{MANIFEST_NAME} cannot be read: {error}"
    manifest = signed.get("manifest")
    if signed.get("sha256") != _hash_content(manifest):
        return f"{MANIFEST_NAME} is not what was written (sha256)"
    files = manifest["files"]
    for name, written in files.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        found = (folder / name).stat().st_size
        if found != written["bytes"]:
            return f"{name} has {found} bytes instead of {written['bytes']}"
    for (name, written), pieces in zip(files.items(), _hash_files(folder / name for name in files), strict=True):
        if pieces != written["xxh3_128"]:
            return f"{name} is not what was written (xxh3_128)"
    return None


def _hash_content(manifest: Any) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _hash_files(files: Iterable[Path]) -> list[list[str]]:
    """The sums of the pieces of each file.

    XXH3, because accidents are to be seen, not forgers: it takes a tenth of the time of sha256, which is as long as
    torch.save's own. It lets go of Python's lock.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        sums = [
            [pool.submit(_hash_piece, file, start) for start in range(0, max(1, file.stat().st_size), _PIECE_BYTES)]
            for file in files
        ]
        return [[piece.result() for piece in pieces] for pieces in sums]


def _hash_piece(file: Path, start: int) -> str:
    digest = xxhash.xxh3_128()
    with file.open("rb") as opened:
        opened.seek(start)
        for _ in range(0, _PIECE_BYTES, _CHUNK_BYTES):
            digest.update(opened.read(_CHUNK_BYTES))
    return digest.hexdigest()
