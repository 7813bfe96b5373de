"""Checkpoints and files of a trainer: one rank writes, all know when it is done."""

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn

from ..ddp.policy import GradientSyncChoice
from ..ranks.run_once import run_once
from ..recovery.checkpoints import Checkpoints
from ..recovery.continuation import Continuation
from ..saving.atomic_directory import atomic_directory
from ..saving.full_disk import named_full_disk


if TYPE_CHECKING:
    from transformers import Trainer

    _Base = Trainer
else:
    _Base = object


class SavingMixin(_Base):
    """The part of [`UnslothAcceleratedTrainerMixin`] that saves and goes on from what was saved."""

    gradient_sync: GradientSyncChoice | None = None
    _checkpoints: Checkpoints | None = None
    _continuation: Continuation | None = None

    def _settle_step(self) -> None:
        """Before anything is saved, every rank knows what every rank did in the last step."""

    def _off_the_clock(self) -> AbstractContextManager[None]:
        """What runs inside does not count for the time of a step."""
        return nullcontext()

    def _choose_checkpoint(self, given: str | bool | None) -> str | bool | None:
        if self._checkpoints is None or self._continuation is None:
            return given
        self._continuation.check_ranks(given)
        checkpoint = self._checkpoints.to_resume(given)
        self._continuation.go_on_from(checkpoint)
        return checkpoint

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Complete, or absent."""
        write = partial(super()._save_checkpoint, model, trial)
        if self._checkpoints is None or self._continuation is None:
            write()
        else:
            run_dir = super()._get_output_dir(trial)
            with self._off_the_clock():
                self._checkpoints.save(named_full_disk(run_dir)(write), run_dir, self._continuation.check_save)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        load = partial(super()._load_rng_state, checkpoint)
        if self._continuation is None:
            load()
        else:
            self._continuation.load_random_state(checkpoint, load)

    def _get_output_dir(self, trial: Any) -> str:
        run_dir = super()._get_output_dir(trial)
        return run_dir if self._checkpoints is None else self._checkpoints.redirect(run_dir)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._checkpoints is None:
            super()._push_from_checkpoint(checkpoint_folder)
        else:
            self._checkpoints.push_when_named(super()._push_from_checkpoint)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As in transformers; the other ranks wait for the one that writes, and its error is raised on all of them."""
        self._settle_step()
        save = super().save_model
        if self.gradient_sync is None:
            save(output_dir, _internal_call)
            return
        run_once(
            lambda: save(output_dir, _internal_call),
            key="save_model",
            description=f"saving step {self.state.global_step} to {output_dir or self.args.output_dir}",
            scope="node" if self.args.save_on_each_node else "world",
        )

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if self.gradient_sync is None:
            super()._save(output_dir, state_dict)
            return
        folder = output_dir or self.args.output_dir
        assert folder is not None, "TrainingArguments have a default"
        with atomic_directory(folder) as beside:
            super()._save(beside, state_dict)
