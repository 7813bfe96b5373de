"""The manifest of a checkpoint: what is in it, so that a damaged one is known before it is loaded."""

import hashlib
import json
import os
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any


MANIFEST_NAME = "manifest.json"
# Accidents are to be seen, not forgers: CRC-32 sees a cut or a flipped bit at a quarter of the time that sha256 takes,
# and that of sha256 is as long as torch.save's own. In pieces, as the cores of the waiting ranks have nothing to do.
_CHUNK_BYTES = 16 * 2**20


def write_manifest(folder: Path, facts: Mapping[str, Any]) -> None:
    """Writes `manifest.json` about all files below `folder`, with a checksum of its own content.

    Args:
        folder (`Path`): The checkpoint, with all its files.
        facts (`Mapping[str, Any]`): What else the manifest says; JSON must be able to hold it.
    """
    files = {
        file.relative_to(folder).as_posix(): {"bytes": file.stat().st_size, "crc32": _checksums(file, _CHUNK_BYTES)}
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    manifest = {**facts, "files": files, "crc32_every_bytes": _CHUNK_BYTES}
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
    files = manifest["files"].items()
    for name, written in files:
        if not (folder / name).is_file():
            return f"{name} is missing"
        found = (folder / name).stat().st_size
        if found != written["bytes"]:
            return f"{name} has {found} bytes instead of {written['bytes']}"
    for name, written in files:
        if _checksums(folder / name, manifest["crc32_every_bytes"]) != written["crc32"]:
            return f"{name} is not what was written (crc32)"
    return None


def _hash_content(manifest: Any) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _checksums(file: Path, chunk_bytes: int) -> list[str]:
    """The CRC-32 of each piece, in their order."""
    offsets = range(0, file.stat().st_size, chunk_bytes)
    with file.open("rb") as opened, ThreadPoolExecutor() as pool:
        return list(pool.map(partial(_checksum, opened.fileno(), chunk_bytes), offsets))


def _checksum(descriptor: int, chunk_bytes: int, offset: int) -> str:
    return f"{zlib.crc32(os.pread(descriptor, chunk_bytes, offset)):08x}"
