"""Finds the checkpoint that training goes on from: the newest one that is complete."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from ..ranks.logging import log_once
from .manifest import MANIFEST_NAME, find_damage


_FOLDER = re.compile(r"checkpoint-(\d+)(\.incomplete)?")


def newest_complete(output_dir: str, with_optimizer: bool) -> Path | None:
    """Looks through the checkpoints in `output_dir`, the newest first, and logs why it skips one. Deletes nothing.

    Args:
        output_dir (`str`): Where the checkpoints are; need not exist.
        with_optimizer (`bool`): Whether a checkpoint of stock transformers must have more than weights.

    Returns:
        `Path`, *optional*: The checkpoint; None if there is no complete one.
    """
    for folder in _newest_first(Path(output_dir)):
        reason = _why_not(folder, with_optimizer)
        if reason is None:
            return folder
        log_once("resume: %s is skipped: %s", folder, reason)
    return None


def _newest_first(output_dir: Path) -> Iterator[Path]:
    """By step; of one step the finished checkpoint before what was left of writing it anew."""
    found = [(_FOLDER.fullmatch(path.name), path) for path in output_dir.glob("checkpoint-*") if path.is_dir()]
    by_step = [(int(match[1]), match[2] is None, path) for match, path in found if match]
    return (path for _, _, path in sorted(by_step, reverse=True))


def _why_not(folder: Path, with_optimizer: bool) -> str | None:
    if folder.name.endswith(".incomplete"):
        return "writing it was not finished"
    if (folder / MANIFEST_NAME).exists():
        return find_damage(folder)
    return _find_gap(folder, with_optimizer)


def _find_gap(folder: Path, with_optimizer: bool) -> str | None:
    """What a checkpoint of stock transformers lacks: there is nothing to compare its bytes with."""
    from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME

    training = (OPTIMIZER_NAME, SCHEDULER_NAME, "rng_state*.pth") if with_optimizer else ()
    for name in (TRAINER_STATE_NAME, *training):
        if not any(folder.glob(name)):
            return f"it has no {name}"
    try:
        json.loads((folder / TRAINER_STATE_NAME).read_text())
    except ValueError as error:  # no JSON, or no text
        return f"{TRAINER_STATE_NAME} cannot be read: {error}"
    return _find_gap_in_weights(folder)


def _find_gap_in_weights(folder: Path) -> str | None:
    from transformers import utils

    whole = (utils.SAFE_WEIGHTS_NAME, utils.WEIGHTS_NAME, utils.ADAPTER_SAFE_WEIGHTS_NAME, utils.ADAPTER_WEIGHTS_NAME)
    # An adapter with a name of its own lies one folder deeper.
    if any(any(folder.glob(name)) or any(folder.glob(f"*/{name}")) for name in whole):
        return None
    for index in (utils.SAFE_WEIGHTS_INDEX_NAME, utils.WEIGHTS_INDEX_NAME):
        if (folder / index).is_file():
            shards = set(json.loads((folder / index).read_text())["weight_map"].values())
            missing = sorted(shard for shard in shards if not (folder / shard).is_file())
            return f"{missing[0]} is missing" if missing else None
    return "it has no weights"
