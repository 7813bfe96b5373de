"""Computes an optimizer step of an SFT trainer as its plan says."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..patching import Undo
from ..plan.cost import RowCost
from ..plan.dataloader import balance_batches
from ..plan.layers import keep_layers
from ..plan.lengths import row_lengths
from ..plan.pieces import group, is_padding_free
from ..ranks.logging import log_once
from ..step_plan import StepPlan


# Unsloth's own balancing, https://github.com/unslothai/unsloth/blob/main/unsloth/utils/token_budget.py
_UNSLOTH_BALANCES = ("UNSLOTH_TOKEN_BALANCE", "UNSLOTH_TOKEN_BUDGET")

TrainingStep = Callable[[Any, Any, Any], Tensor]


class PlannedSteps:
    """Holds a step's micro-batches back until its last one, and then computes all of them in the planned pieces.

    What surrounds the micro-batches (callbacks, counts of tokens, the number of calls) stays that of the trainer's
    arguments.

    Args:
        trainer (`trl.SFTTrainer`): Whose steps.
        plan ([`StepPlan`]): How to compute them.
    """

    def __init__(self, trainer: Any, plan: StepPlan) -> None:
        self._trainer, self._plan = trainer, plan
        self._waiting = 0
        self._pieces: list[dict[str, Tensor]] = []
        self._has_said_why = False

    def balance(self, dataloader: Any) -> Any:
        """The loader, with the rows of each step dealt to the ranks by cost, or as it was, and why is logged."""
        if not self._plan.balance:
            return dataloader
        if any(os.environ.get(variable, "0") not in ("", "0") for variable in _UNSLOTH_BALANCES):
            log_once("step plan: Unsloth balances the ranks (UNSLOTH_TOKEN_BALANCE), so rows are dealt as it says")
            return dataloader
        trainer = self._trainer
        lengths, reason = row_lengths(trainer.train_dataset, trainer.args.max_length)
        if lengths is None:
            log_once("step plan: rows are dealt by number: %s", reason)
            return dataloader
        padded = not getattr(trainer.data_collator, "padding_free", False)
        cost = RowCost.from_config(trainer.model.config, padded)
        return balance_batches(dataloader, lengths, cost, trainer.args.gradient_accumulation_steps)

    def keep_layers(self) -> Undo:
        """Lets the planned number of layers keep their activations; returns what takes that back."""
        kept, undo = keep_layers(self._trainer.model, self._plan.layers_kept)
        pieces = self._plan.pieces or self._trainer.args.gradient_accumulation_steps
        balanced = "balanced" if self._plan.balance else "as they come"
        log_once("step plan: rows %s, %d pieces a step at most, %d layers not recomputed", balanced, pieces, kept)
        return undo

    def begin_step(self, batches: Sequence[Any], num_items_in_batch: Any) -> None:
        """Puts the step's micro-batches together, if they are documents side by side and their loss is a sum."""
        self._pieces, self._waiting = [], len(batches)
        pieces = self._plan.pieces
        if pieces is None or len(batches) <= pieces:
            return
        if num_items_in_batch is None:
            self._log_why("their loss is not divided by the tokens of the whole step")
        elif not all(map(is_padding_free, batches)):
            self._log_why(f"they are not padding-free: {_describe(batches[0])}")
        else:
            self._pieces = group(batches, pieces)

    def _log_why(self, reason: str) -> None:
        if not self._has_said_why:
            log_once("step plan: micro-batches are computed one by one, because %s", reason)
        self._has_said_why = True

    def training_step(self, step: TrainingStep, model: Any, inputs: Any, num_items_in_batch: Any) -> Tensor:
        """A micro-batch's turn: nothing, or at the last one of a step all pieces.

        Args:
            step (`Callable`): The trainer's own `training_step`.
            model (`nn.Module`): The wrapped model.
            inputs (`Mapping[str, torch.Tensor]`): The micro-batch.
            num_items_in_batch (`int` or `torch.Tensor`): The labelled tokens of the whole step on all ranks.

        Returns:
            `torch.Tensor`: A scalar; the losses of a step add up to what they add up to without a plan.
        """
        if not self._pieces:
            return step(model, inputs, num_items_in_batch)
        self._waiting -= 1
        if self._waiting:
            return torch.zeros((), device=self._trainer.args.device)
        *first, last = self._pieces
        loss = torch.zeros((), device=self._trainer.args.device)
        for piece in first:
            with self._trainer.accelerator.no_sync(model):
                loss += step(model, piece, num_items_in_batch)
        return loss + step(model, last, num_items_in_batch)


def _describe(batch: Any) -> str:
    """A batch's tensors and their shapes, or its type."""
    if not isinstance(batch, Mapping):
        return type(batch).__name__
    return ", ".join(f"{name} {list(getattr(value, 'shape', []))}" for name, value in batch.items())
