"""A run stays one run, over all its ranks and over the checkpoints between its parts."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..ranks.logging import log_once
from .agreement import require_agreement
from .data_fingerprint import data_fingerprint
from .digests import optimizer_state, trained_weights
from .facts import arguments, run_facts, sampler_position, versions
from .manifest import read_facts
from .random_state import load_random_state
from .resume import check_position, fit_run


if TYPE_CHECKING:
    from transformers import Trainer


class Continuation:
    """Lets the ranks agree on what they train, and fits a run to the checkpoint it goes on from.

    Args:
        trainer (`transformers.Trainer`): The trainer.
        automatic (`bool`): Whether `gradient_accumulation_steps` may be changed so that a step keeps its rows.
    """

    def __init__(self, trainer: "Trainer", *, automatic: bool) -> None:
        self._trainer, self._automatic = trainer, automatic
        self._code: dict[str, str] = {}
        self._data: dict[str, Any] = {}
        self._resumed: tuple[str, dict[str, Any]] | None = None

    def check_ranks(self, resume_from_checkpoint: str | bool | None) -> None:
        """Compares what the ranks were started with; to be called first in `train`, with its argument.

        Raises:
            ConfigurationError: If a rank has other code, arguments or data; it is named.
        """
        self._code, self._data = versions(), data_fingerprint(self._trainer.train_dataset)
        given = arguments(self._trainer) | {"resume_from_checkpoint": resume_from_checkpoint}
        self._agree("the start of training", {"versions": self._code, "arguments": given, "data": self._data})

    def go_on_from(self, checkpoint: str | bool | None) -> None:
        """Takes the checkpoint that training will load, or what says that there is none.

        Raises:
            ConfigurationError: If it was written with other data, or with a global batch that these ranks cannot have.
        """
        self._resumed = None
        if not isinstance(checkpoint, str):
            return
        facts = read_facts(Path(checkpoint))
        if facts is None:
            log_once("resume: %s has no manifest, so its global batch and its data cannot be compared", checkpoint)
            return
        self._resumed = checkpoint, facts
        fit_run(self._trainer, checkpoint, facts, self._code, self._data, automatic=self._automatic)

    def check_first_step(self) -> None:
        """Compares what the ranks begin with; to be called when weights, optimizer and data loader are ready.

        Raises:
            ConfigurationError: If the ranks draw rows in different orders, or go on at another place in the data.
            GradientSyncError: If their weights or optimizers differ.
        """
        if self._resumed is not None:
            check_position(self._trainer, *self._resumed)
        self._agree("the first step", {"sampler": sampler_position(self._trainer), **self._trained()})

    def check_save(self) -> dict[str, Any]:
        """Compares what the ranks have trained; returns what the manifest says of the run.

        To be called in a thread while the checkpoint is written, which no more than this changes what is trained.

        Raises:
            GradientSyncError: If weights or optimizers differ.
        """
        device = self._trainer.args.device
        if device.type == "cuda":
            torch.cuda.set_device(device)  # each thread has its own
        self._agree(f"the save of step {self._trainer.state.global_step}", self._trained())
        return run_facts(self._trainer, self._code, self._data)

    def load_random_state(self, checkpoint: str | None, load_own: Callable[[], None]) -> None:
        """Restores each rank's random numbers, also of a checkpoint that another number of ranks wrote."""
        if checkpoint is not None:
            load_random_state(self._trainer, Path(checkpoint), load_own)

    def _trained(self) -> dict[str, dict[str, Any]]:
        model = self._trainer.model
        assert model is not None, "transformers has refused a trainer without one"
        optimizer = optimizer_state(self._trainer.optimizer, model)
        return {"trained weights": trained_weights(model), "optimizer state": optimizer}

    def _agree(self, moment: str, held: Mapping[str, Mapping[str, Any]]) -> None:
        # As long as ranks wait for each other elsewhere: they load models, or evaluate, at their own pace.
        require_agreement(moment, held, float(self._trainer.args.ddp_timeout))
