"""Whether the machines of a run share the folder it writes to, or each has its own."""

import os
import time
import uuid
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigurationError
from ..ranks.agreement import gather_values
from ..ranks.environment import local_world_size, rank, world_size
from ..ranks.logging import log_once
from ..ranks.run_once import run_once


if TYPE_CHECKING:
    from transformers import TrainingArguments

# A name that nobody has asked for is in no cache of NFS, so it is seen at once; other file systems may take longer.
SEEN_SECONDS = 10.0
POLL_SECONDS = 0.2
# All ranks begin to train together; as long as torch lets a collective of gloo wait.
TIMEOUT_SECONDS = 1800.0

_checks = count()


def check_output_folder(args: "TrainingArguments", resumes: bool) -> bool:
    """Finds out whether all machines see `output_dir`, and says what follows where they do not. Called on all ranks.

    Args:
        args (`TrainingArguments`): With `output_dir`, `save_on_each_node` and `load_best_model_at_end`.
        resumes (`bool`): Whether training is to go on from a checkpoint that is looked for in `output_dir`.

    Returns:
        `bool`: Whether all machines see one folder; on one machine they do.

    Raises:
        ConfigurationError: If checkpoints could not be read where they must be, or would overwrite each other.
    """
    folder = str(args.output_dir)
    if local_world_size() == world_size():
        return True
    elsewhere, blind = _ranks_elsewhere(folder)
    if args.save_on_each_node and len(blind) < len(elsewhere):
        seeing = ", ".join(str(other) for other in elsewhere if other not in blind)
        raise ConfigurationError(
            f"`save_on_each_node` is True, but rank {seeing} on another machine sees the `output_dir` of rank 0, "
            f"{folder}: the machines would write over each other's files. Leave it False, or give each its own folder."
        )
    if blind and not args.save_on_each_node:
        _say_what_follows(args, folder, ", ".join(map(str, blind)), resumes)
    return not blind


def _say_what_follows(args: "TrainingArguments", folder: str, blind: str, resumes: bool) -> None:
    """Saving works all the same, so only what needs to read is an error."""
    state = f"`output_dir` {folder} is not one folder of all machines: rank {blind} does not see what rank 0 writes"
    remedy = "Put it on storage that all machines share, or set `save_on_each_node=True` to have checkpoints on each."
    if args.load_best_model_at_end:
        raise ConfigurationError(f"{state}, so it could not load the best model (`load_best_model_at_end`). {remedy}")
    if resumes:
        raise ConfigurationError(
            f"{state}, so it cannot resume from a checkpoint there. {remedy} Or pass as `resume_from_checkpoint` the "
            "path of one that you have copied to each machine."
        )
    log_once("%s: checkpoints lie on the machine of rank 0 only, and cannot be resumed as they are. %s", state, remedy)


def _ranks_elsewhere(folder: str) -> tuple[list[int], list[int]]:
    """The ranks on other machines than rank 0, and those of them that do not see what it writes."""
    look = f"output folder {next(_checks)}"
    name, neighbours = run_once(
        partial(_leave_file, folder), key="output_folder", description=f"looking at `output_dir` {folder}"
    )
    try:
        seen = gather_values(look, _sees(folder, name), TIMEOUT_SECONDS)
    finally:
        if rank() == 0:
            Path(folder, name).unlink(missing_ok=True)
    elsewhere = list(range(neighbours, world_size()))
    return elsewhere, [other for other in elsewhere if not seen[other]]


def _leave_file(folder: str) -> tuple[str, int]:
    """Its name, and how many ranks are on the machine that wrote it."""
    name = f".unsloth_accel-{uuid.uuid4().hex}"
    os.makedirs(folder, exist_ok=True)
    Path(folder, name).touch()
    return name, local_world_size()


def _sees(folder: str, name: str) -> bool:
    # Asks the server, where to look for a folder that was not there a moment ago may be answered from a cache (nfs(5),
    # lookupcache). transformers makes the folder on each machine, too, when it saves random numbers.
    os.makedirs(folder, exist_ok=True)
    deadline = time.monotonic() + SEEN_SECONDS
    while not (found := Path(folder, name).exists()) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    return found
