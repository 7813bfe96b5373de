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
_FOLDER = re.compile(r"checkpoint-(\d+)(\.incomplete)?")


def newest_complete(output_dir: str, with_optimizer: bool, limit: int | None = None) -> Path | None:
    """Looks through the checkpoints in `output_dir`, the newest first, and logs why it skips one. Deletes nothing.

    Args:
        output_dir (`str`): Where the checkpoints are; need not exist.
        with_optimizer (`bool`): Whether a checkpoint of stock transformers must have more than weights.
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


def _newest_first(output_dir: Path, limit: int | None) -> Iterator[Path]:
    """By step; of one step the finished checkpoint before what was left of writing it anew."""
    found = [(_FOLDER.fullmatch(path.name), path) for path in output_dir.glob("checkpoint-*") if path.is_dir()]
    by_step = [(int(match[1]), match[2] is None, path) for match, path in found if match]
    return (path for step, _, path in sorted(by_step, reverse=True) if limit is None or step <= limit)


def _why_not(folder: Path, with_optimizer: bool) -> str | None:
    if folder.name.endswith(".incomplete"):
        return "writing it was not finished"
    if (folder / MANIFEST_NAME).exists():
        return find_damage(folder)
    return _find_gap(folder, with_optimizer)


def _find_gap(folder: Path, with_optimizer: bool) -> str | None:
    """What a checkpoint of stock transformers lacks: there is nothing to compare its bytes with."""
    training = ("optimizer.pt", "scheduler.pt", "rng_state*.pth") if with_optimizer else ()
    for name in (_STATE, *training):
        if not any(folder.glob(name)):
            return f"it has no {name}"
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
