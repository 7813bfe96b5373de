"""A checkpoint of transformers' Trainer is complete or it is not there."""

import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import ConfigurationError, PeerError
from ..ranks.agreement import collect_values, publish_value
from ..ranks.environment import is_distributed, local_rank, rank
from ..ranks.logging import log_once
from ..ranks.run_once import Scope, run_once
from ..saving.output_folder import check_output_folder
from .every_machine import newest_on_every_machine
from .manifest import sync_directory, write_manifest
from .newest import newest_step


if TYPE_CHECKING:
    from transformers import Trainer

# The ranks have met after the weights; what is left to write may still go to a slower disk on another machine.
WRITE_SECONDS = 600.0

# The ranks begin each save together, so they count alike.
_saves = count()


class Checkpoints:
    """Writes a trainer's checkpoints beside their place, and finds the one to go on from.

    Args:
        trainer (`transformers.Trainer`): Whose checkpoints.
        resume (`str`, *optional*): `"auto"`: go on from the newest complete one, if there is one.
    """

    def __init__(self, trainer: "Trainer", resume: Literal["auto"] | None) -> None:
        self._trainer, self._resume = trainer, resume
        self._beside: Path | None = None
        self._push: Callable[[str], None] | None = None
        self._shared = True
        self._skipped: set[str] = set()  # finished checkpoints that could not be resumed, by name

    def redirect(self, run_dir: str) -> str:
        """Where the trainer is to put `checkpoint-N`: while one is written, beside."""
        return run_dir if self._beside is None else str(self._beside)

    def push_when_named(self, push: Callable[[str], None]) -> None:
        """Keeps the upload of a checkpoint until that has its name, as it goes on while training does."""
        self._push = push

    def save(self, write: Callable[[], None], run_dir: str, check: Callable[[], Mapping[str, Any]]) -> None:
        """Writes a checkpoint; called on all ranks.

        Args:
            write (`Callable`): The trainer's own way to write one, below what `redirect` returns.
            run_dir (`str`): Where the checkpoints are.
            check (`Callable`): Compares what the ranks hold, and returns what the manifest says of the run. It runs in
                another thread meanwhile; if it raises, there is no checkpoint.

        Raises:
            PeerError: If another rank could not write its part.
        """
        trainer, self._push = self._trainer, None
        place = os.path.join(run_dir, f"checkpoint-{trainer.state.global_step}")
        scope: Scope = "node" if trainer.args.save_on_each_node else "world"
        with (
            ThreadPoolExecutor(1, "unsloth_accel-check") as another_thread,
            complete_or_absent(Path(place), another_thread.submit(check).result, scope) as self._beside,
        ):
            try:
                write()
                self._name_best(place)
            finally:
                self._beside = None
        if not self._shared and local_rank() == 0 and not trainer.args.should_save:
            # The random numbers of a machine that keeps no checkpoints; where only weights are saved, there are none.
            shutil.rmtree(f"{place}.incomplete", ignore_errors=True)
        self._skipped.discard(os.path.basename(place))
        if trainer.args.should_save:
            rotate(Path(place), trainer.args.save_total_limit, trainer.state.best_model_checkpoint, self._skipped)
        if self._push is not None:
            self._push(place)

    def _name_best(self, place: str) -> None:
        """The state names the best checkpoint by where it is, or will be; transformers has looked for it beside."""
        state, (run_dir, written) = self._trainer.state, os.path.split(place)
        best = os.path.join(run_dir, f"checkpoint-{state.best_global_step}")
        if not state.best_global_step or not (best == place or os.path.isdir(best)):
            return
        if state.best_model_checkpoint != best:
            state.best_model_checkpoint = best
            if self._trainer.args.should_save:
                state.save_to_json(os.path.join(str(self._beside), written, "trainer_state.json"))

    def to_resume(self, given: str | bool | None) -> str | bool | None:
        """The checkpoint to go on from, the same on all ranks.

        Args:
            given (`str` or `bool`, *optional*): The argument of `train`. A path and `False` are taken as they are.

        Raises:
            ConfigurationError: If there is no complete checkpoint, and it is `True`, or some were skipped.
        """
        looks = given is True or (given is None and self._resume is not None)
        self._shared, self._skipped = check_output_folder(self._trainer.args, resumes=looks), set()
        if not looks:
            return given
        output_dir = self._trainer.args.output_dir
        assert output_dir is not None, "TrainingArguments have a default"
        step, skipped = _find(output_dir, with_optimizer=not self._trainer.args.save_only_model, shared=self._shared)
        if step is None and (given is True or skipped):
            raise ConfigurationError(_none_complete(output_dir, skipped, asked=given is True))
        self._skipped = set(skipped)
        found = None if step is None else os.path.join(output_dir, f"checkpoint-{step}")
        log_once("resume: training %s", f"goes on from {found}" if found else "starts from the beginning")
        return found


def _find(output_dir: str, with_optimizer: bool, shared: bool) -> tuple[int | None, list[str]]:
    if not shared:
        return newest_on_every_machine(output_dir, with_optimizer)
    return run_once(
        partial(newest_step, output_dir, with_optimizer),
        key="resume",
        description=f"looking for the newest complete checkpoint in {output_dir}",
    )


def _none_complete(output_dir: str, skipped: list[str], *, asked: bool) -> str:
    argument = "`resume_from_checkpoint` is True" if asked else "`resume` is 'auto'"
    named = f", only {', '.join(skipped)}, which cannot be resumed (the log says why)" if skipped else ""
    return (
        f"{argument}, but `output_dir` {output_dir} has no complete checkpoint{named}. Pass the path of another one "
        "to `train` as `resume_from_checkpoint`, or `resume_from_checkpoint=False` to start anew."
    )


@contextmanager
def complete_or_absent(final: Path, facts: Callable[[], Mapping[str, Any]], scope: Scope = "world") -> Iterator[Path]:
    """Yields a folder in which all ranks write `final.name`; when all have, one rank gives it its place, by a rename.

    After a kill `<final>.incomplete` remains; the next save of that step removes it.

    Args:
        final (`Path`): The checkpoint. One that is there already is replaced.
        facts (`Callable`): What its manifest says besides its files; asked on each rank when that has written. If it
            raises, which it does on all ranks, there is no checkpoint.
        scope (`"world"` or `"node"`, *optional*, defaults to `"world"`): Whether all nodes share the folder, or each
            has its own.

    Yields:
        `Path`: The folder beside.

    Raises:
        PeerError: If another rank failed to write its part, or does not come within 10 minutes.
    """
    holder = final.with_name(f"{final.name}.incomplete")
    key = f"{final.name}/{next(_saves)}"
    finish = partial(run_once, key=key, description=f"completing {final}", scope=scope)
    writes = rank() == 0 if scope == "world" else local_rank() == 0
    if writes:
        # The other ranks write nothing before they have met this one, where the weights are saved.
        shutil.rmtree(holder, ignore_errors=True)
        holder.mkdir(parents=True)
    try:
        yield holder
    except Exception as error:  # whatever it is, the other ranks must not wait; it is raised again
        _publish(key, f"{type(error).__name__}: {error}")
        if writes:
            finish(partial(_remove, holder, key, error))
        raise
    _publish(key, "")
    try:
        said = facts()
    except Exception as error:  # as above
        if writes:
            finish(partial(_remove, holder, key, error))
        raise
    finish(partial(_complete, final, holder, said, key))


def _publish(key: str, failure: str) -> None:
    if is_distributed():
        publish_value(key, failure)


def _collect(key: str) -> list[str]:
    """What each rank has published, when all have."""
    return collect_values(key, WRITE_SECONDS) if is_distributed() else []


def _remove(holder: Path, key: str, error: Exception) -> None:
    """When all have written, or what a slower rank writes would be left."""
    with suppress(PeerError):  # of a rank that does not come; what went wrong first is raised
        _collect(key)
    shutil.rmtree(holder, ignore_errors=True)
    raise error


def _complete(final: Path, holder: Path, facts: Mapping[str, Any], key: str) -> None:
    written = holder / final.name
    try:
        _raise_if_incomplete(final, key)
        write_manifest(written, facts)
    except Exception:
        shutil.rmtree(holder, ignore_errors=True)
        raise
    if final.exists():
        final.rename(holder / "replaced")
    written.rename(final)
    sync_directory(final.parent)
    _remove_old(holder)


def _raise_if_incomplete(final: Path, key: str) -> None:
    for other, failure in enumerate(_collect(key)):
        if failure:
            raise PeerError(f"Rank {other} could not write its part of {final}. Its error: {failure}")


def _remove_old(folder: Path) -> None:
    """As transformers does, what cannot be removed stays, and training goes on: a file may be open on NFS."""
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        log_once("%s could not be removed, and stays", folder)


def rotate(newest: Path, limit: int | None, best: str | None, skipped: Collection[str] = ()) -> None:
    """Removes the oldest checkpoints beyond `limit`, but never the one just written, nor the best.

    transformers would count a folder that a kill left half written, and may keep that in place of a complete one.

    Args:
        newest (`Path`): The checkpoint that was just written.
        limit (`int`, *optional*): How many to keep; None or 0 for all.
        best (`str`, *optional*): The best checkpoint.
        skipped (`Collection[str]`, *optional*): The names of those that could not be resumed. They stay, since a user
            may mend them, and do not count.
    """
    if not limit or limit < 0:
        return
    numbered = (path for path in newest.parent.glob("checkpoint-*") if path.name.partition("-")[2].isdecimal())
    found = [path for path in numbered if path.name not in skipped]
    kept = {newest.name, os.path.basename(best or "")}
    others = sorted((path for path in found if path.name not in kept), key=_written_at)
    for oldest in others[: max(0, len(found) - limit)]:
        _remove_old(oldest)


def _written_at(folder: Path) -> float:
    with suppress(OSError):  # another process has just removed it
        return folder.stat().st_mtime
    return 0.0
