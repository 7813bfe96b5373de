"""Computes an optimizer step of an SFT trainer as its plan says."""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..ddp.reports import Action, RankReport
from ..patching import Undo
from ..plan.cost import RowCost
from ..plan.dataloader import balance_batches
from ..plan.layers import keep_layers
from ..plan.lengths import row_lengths
from ..plan.out_of_memory import compute_apart
from ..plan.pieces import group, halve, is_padding_free
from ..ranks.environment import rank
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
        self._count = plan.pieces
        self._reduce: Callable[[], None] | None = None
        self.cuts = 0
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

    def reduce_with(self, reduce: Callable[[], None] | None) -> None:
        """Takes what averages the gradients once all pieces are computed; None where DDP does that in backward."""
        self._reduce = reduce

    def begin_step(self, batches: Sequence[Any], num_items_in_batch: Any) -> None:
        """Puts the step's micro-batches together, if they are documents side by side and their loss is a sum."""
        self._pieces, self._waiting, self.cuts = [], len(batches), 0
        pieces = self._count
        if pieces is None:
            return
        if num_items_in_batch is None:
            self._log_why("their loss is not divided by the tokens of the whole step")
        elif not all(map(is_padding_free, batches)):
            self._log_why(f"they are not padding-free: {_describe(batches[0])}")
        else:
            self._pieces = _at_least(pieces, group(batches, pieces))

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
        if self._reduce is None:
            return self._compute(step, model, num_items_in_batch)
        with self._trainer.accelerator.no_sync(model):
            loss = self._compute_whatever_fits(step, model, num_items_in_batch)
        self._reduce()
        if self.cuts and self._trainer.accelerator.num_processes == 1:
            self._make_more_pieces("0")
        return loss

    def _compute(self, step: TrainingStep, model: Any, num_items_in_batch: Any) -> Tensor:
        """All pieces; the last one's backward ends with the reduction of DDP."""
        *first, last = self._pieces
        loss = torch.zeros((), device=self._trainer.args.device)
        for piece in first:
            with self._trainer.accelerator.no_sync(model):
                loss += step(model, piece, num_items_in_batch)
        return loss + step(model, last, num_items_in_batch)

    def _compute_whatever_fits(self, step: TrainingStep, model: Any, num_items_in_batch: Any) -> Tensor:
        """All pieces; one that does not fit into memory is cut in two and computed again, without the other ranks."""
        parameters = [p for p in self._trainer.model.parameters() if p.requires_grad]
        loss = torch.zeros((), device=self._trainer.args.device)
        left = self._pieces
        while left:
            piece, *left = left
            found, error = compute_apart(partial(step, model, piece, num_items_in_batch), parameters)
            if found is None:
                left = [*self._cut(piece, error), *left]
            else:
                loss += found
        return loss

    def _cut(self, piece: dict[str, Tensor], error: str) -> list[dict[str, Tensor]]:
        halves = halve(piece)
        tokens = piece["input_ids"].shape[1]
        if len(halves) == 1:
            raise torch.OutOfMemoryError(
                f"One row of {tokens} tokens does not fit into memory by itself on rank {rank()}. Lower `max_length`, "
                f"recompute all layers (`layers_kept=0`), or load the model in 4 bit. {error}"
            )
        self.cuts += 1
        return halves

    # What the ranks tell each other of it

    columns: tuple[str, ...] = ("pieces_cut",)

    def report(self) -> Mapping[str, float | Tensor]:
        """How often this rank had to cut a piece in this step."""
        return {"pieces_cut": self.cuts}

    def decide(self, ranks: Sequence[RankReport]) -> Action | None:
        """If a rank had to cut, all make twice the pieces from the next step on."""
        cut = [str(number) for number, report in enumerate(ranks) if report.values["pieces_cut"]]
        return partial(self._make_more_pieces, ", ".join(cut)) if cut else None

    def _make_more_pieces(self, where: str) -> None:
        self.cuts = 0
        self._count = 2 * (self._count or 1)
        log_once("step plan: rank %s ran out of memory; from now on %d pieces a step", where, self._count)


def _at_least(count: int, pieces: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Cuts the longest pieces, where there are fewer than `count`, which micro-batches that are too large need."""
    whole: list[dict[str, Tensor]] = []  # single documents
    while pieces and len(whole) + len(pieces) < count:
        pieces.sort(key=lambda piece: piece["input_ids"].shape[1])
        halves = halve(pieces.pop())
        (pieces if len(halves) > 1 else whole).extend(halves)
    return [*whole, *pieces]


def _describe(batch: Any) -> str:
    """A batch's tensors and their shapes, or its type."""
    if not isinstance(batch, Mapping):
        return type(batch).__name__
    return ", ".join(f"{name} {list(getattr(value, 'shape', []))}" for name, value in batch.items())
