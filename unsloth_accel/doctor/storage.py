"""Room on disk and in shared memory, and the folder of Unsloth's generated code."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .finding import Finding


GIB = 2**30
# A 7b model in bf16 is 15 GB to download, and as much to save merged; adapters and their checkpoints take 1 GiB.
DISK_WANTED, DISK_NEEDED = 30 * GIB, GIB
# NCCL and the workers of data loaders exchange through it. Docker's default, 64 MiB, is too little for either:
# https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/troubleshooting.html#shared-memory
SHARED_WANTED, SHARED_NEEDED = GIB, 128 * 2**20
# unsloth_zoo.compiler writes the versions it worked with at the head of each file, in this order, up to this mark.
VERSIONS_OF = ("unsloth_zoo", "unsloth", "transformers", "trl")
MARK = "__UNSLOTH_VERSIONING__"


def check_disk() -> Iterator[Finding]:
    """Where checkpoints are written, by default beside the script, and where models are downloaded to."""
    cache = os.environ.get("HF_HOME", Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface"))
    for name, folder in (("disk, here", Path.cwd()), ("disk, models", Path(cache).expanduser())):
        mend = "free some, or start elsewhere" if folder == Path.cwd() else "export HF_HOME=FOLDER"
        yield _room(name, folder, DISK_WANTED, DISK_NEEDED, mend)


def check_shared_memory() -> Iterator[Finding]:
    """/dev/shm, which containers make small."""
    mend = "docker run --shm-size=8g ..., or mount -o remount,size=8G /dev/shm"
    yield _room("shared memory", Path("/dev/shm"), SHARED_WANTED, SHARED_NEEDED, mend)


def _room(name: str, folder: Path, wanted: int, needed: int, mend: str) -> Finding:
    there = _nearest_existing(folder)
    free = shutil.disk_usage(there).free
    message = f"{free / GIB:.1f} GiB free in {folder}"
    if free >= wanted:
        return Finding(name, "PASS", message)
    return Finding(name, "WARN" if free >= needed else "FAIL", f"{message}, {wanted / GIB:.0f} are better", mend)


def check_compiled_cache() -> Iterator[Finding]:
    """Whether Unsloth can write its generated trainers, and whether those that are there are of other versions."""
    folder = Path(os.environ.get("UNSLOTH_COMPILE_LOCATION", "unsloth_compiled_cache")).absolute()
    reason = _why_not_writable(_nearest_existing(folder))
    if reason:
        yield Finding(
            "compiled cache",
            "WARN",
            f"{folder} cannot be written ({reason}); Unsloth takes {tempfile.gettempdir()}",
            "export UNSLOTH_COMPILE_LOCATION=FOLDER",
        )
        return
    stale = [path.name for path in sorted(folder.glob("*.py")) if _is_of_other_versions(path)]
    if stale:
        message = f"{len(stale)} files of other versions in {folder} ({stale[0]}, ...); Unsloth makes them anew"
        yield Finding("compiled cache", "WARN", message, f"rm -r {folder}")
    else:
        yield Finding("compiled cache", "PASS", f"{folder} can be written, nothing in it is of other versions")


def _nearest_existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())


def _why_not_writable(folder: Path) -> str:
    """Tried, because the permissions of a network drive or of root do not tell."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return str(error.strerror)


def _is_of_other_versions(path: Path) -> bool:
    head, mark, _ = path.read_text(errors="replace").partition(MARK)
    made_by = [line.strip() for line in head.strip().strip('"').splitlines() if line.strip()]
    return bool(mark) and made_by[: len(VERSIONS_OF)] != [_version(package) for package in VERSIONS_OF]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "0"
