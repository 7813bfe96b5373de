"""The manifest of a checkpoint: what is in it, so that a damaged one is known before it is loaded."""

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any


MANIFEST_NAME = "manifest.json"
# A large file is hashed in pieces side by side: sha256 over the whole of it is slower than torch.save writes it, and
# while a checkpoint is being completed the cores of the other ranks have nothing to do.
_CHUNK_BYTES = 16 * 2**20


def write_manifest(folder: Path, facts: Mapping[str, Any]) -> None:
    """Writes `manifest.json` about all files below `folder`, with a hash of its own content.

    Args:
        folder (`Path`): The checkpoint, with all its files.
        facts (`Mapping[str, Any]`): What else the manifest says; JSON must be able to hold it.
    """
    files = {
        file.relative_to(folder).as_posix(): {"bytes": file.stat().st_size, "sha256": _hash_file(file)}
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    manifest = {**facts, "files": files, "sha256_chunk_bytes": _CHUNK_BYTES}
    signed = {"manifest": manifest, "sha256": _hash_content(manifest)}
    # Without a newline at the end: every byte counts, so a cut is seen.
    (folder / MANIFEST_NAME).write_text(json.dumps(signed, indent=1))


def find_damage(folder: Path) -> str | None:
    """Compares the files of a checkpoint with its manifest: their sizes first, then their hashes.

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
        if _hash_file(folder / name, manifest["sha256_chunk_bytes"]) != written["sha256"]:
            return f"{name} is not what was written (sha256)"
    return None


def _hash_content(manifest: Any) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _hash_file(file: Path, chunk_bytes: int = _CHUNK_BYTES) -> str:
    """The sha256 of the sha256 of each chunk, in their order."""
    offsets = range(0, file.stat().st_size, chunk_bytes)
    with file.open("rb") as opened, ThreadPoolExecutor() as pool:
        digests = pool.map(partial(_hash_chunk, opened.fileno(), chunk_bytes), offsets)
        return hashlib.sha256(b"".join(digests)).hexdigest()


def _hash_chunk(descriptor: int, chunk_bytes: int, offset: int) -> bytes:
    return hashlib.sha256(os.pread(descriptor, chunk_bytes, offset)).digest()
