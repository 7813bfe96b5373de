"""Finds the checkpoint that training goes on from: the newest one that is complete."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from ..ranks.logging import log_once
from .manifest import MANIFEST_NAME, find_damage


# What transformers and PEFT write, https://github.com/huggingface/transformers/blob/main/src/transformers/trainer.py
_STATE = "trainer_state.json"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin", "adapter_model.safetensors", "adapter_model.bin")
_UNFINISHED = ".incomplete"
_FOLDER = re.compile(rf"checkpoint-\d+({re.escape(_UNFINISHED)})?")


def newest_complete(output_dir: str, with_optimizer: bool, limit: int | None = None) -> Path | None:
    """Looks through the checkpoints in `output_dir`, the newest first, and logs why it skips one. Deletes nothing.

    Args:
        output_dir (`str`): Where the checkpoints are; need not exist.
        with_optimizer (`bool`): Whether it must have more than weights.
        limit (`int`, *optional*): The step after which none is looked at.

    Returns:
        `Path`, *optional*: The checkpoint; None if there is no complete one.
    """
    for folder in _newest_first(Path(output_dir), limit):
        reason = _why_not(folder, with_optimizer)
        if reason is None:
            return folder
        log_once("resume: %s is skipped: %s", folder, reason)
    return None


def newest_step(output_dir: str, with_optimizer: bool, limit: int | None = None) -> tuple[int | None, list[str]]:
    """The step of the checkpoint that [`newest_complete`] finds, with the same arguments.

    Returns:
        `tuple[int | None, list[str]]`: The step, None if there is none; and the names of the finished checkpoints that
        were skipped for it, all of later steps.
    """
    found = newest_complete(output_dir, with_optimizer, limit)
    step = None if found is None else _step(found)
    later = (folder for folder in _newest_first(Path(output_dir), None) if step is None or _step(folder) > step)
    return step, [folder.name for folder in later if not _is_unfinished(folder)]


def _step(folder: Path) -> int:
    return int(folder.name.removesuffix(_UNFINISHED).removeprefix("checkpoint-"))


def _is_unfinished(folder: Path) -> bool:
    return folder.name.endswith(_UNFINISHED)


def _newest_first(output_dir: Path, limit: int | None) -> Iterator[Path]:
    """By step; of one step the finished checkpoint before what was left of writing it anew."""
    found = [path for path in output_dir.glob("checkpoint-*") if _FOLDER.fullmatch(path.name) and path.is_dir()]
    newest_first = sorted(found, key=lambda path: (_step(path), not _is_unfinished(path)), reverse=True)
    return (path for path in newest_first if limit is None or _step(path) <= limit)


def _why_not(folder: Path, with_optimizer: bool) -> str | None:
    if _is_unfinished(folder):
        return "writing it was not finished"
    try:
        if (folder / MANIFEST_NAME).exists():
            return find_damage(folder) or _find_missing(folder, with_optimizer)
        return _find_missing(folder, with_optimizer) or _find_gap(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        # A bad sector, another user's file, or JSON of another form: an older one may still be good.
        return f"it cannot be read: {type(error).__name__}: {error}"


def _find_missing(folder: Path, with_optimizer: bool) -> str | None:
    training = ("optimizer.pt", "scheduler.pt", "rng_state*.pth") if with_optimizer else ()
    missing = [name for name in (_STATE, *training) if not any(folder.glob(name))]
    return f"it has no {missing[0]}" if missing else None


def _find_gap(folder: Path) -> str | None:
    """What else a checkpoint of stock transformers lacks: there is nothing to compare its bytes with."""
    try:
        json.loads((folder / _STATE).read_text())
    except ValueError as error:  # no JSON, or no text
        return f"{_STATE} cannot be read: {error}"
    return _find_gap_in_weights(folder)


def _find_gap_in_weights(folder: Path) -> str | None:
    # An adapter with a name of its own lies one folder deeper.
    if any(any(folder.glob(name)) or any(folder.glob(f"*/{name}")) for name in _WEIGHTS):
        return None
    indices = [folder / f"{name}.index.json" for name in _WEIGHTS if (folder / f"{name}.index.json").is_file()]
    if not indices:
        return "it has no weights"
    shards = set(json.loads(indices[0].read_text())["weight_map"].values())
    missing = sorted(shard for shard in shards if not (folder / shard).is_file())
    return f"{missing[0]} is missing" if missing else None
