"""Computes an optimizer step of an SFT trainer as its plan says."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..ddp.reports import Action, RankReport
from ..patching import Undo
from ..plan.cost import RowCost
from ..plan.dataloader import balance_batches, why_not_balanced
from ..plan.layers import checkpointed_layers, keep_layers
from ..plan.lengths import RowLengths, row_lengths
from ..plan.out_of_memory import compute_parts, is_out_of_memory
from ..plan.pieces import Piece, Together, cut, how_together, make_pieces, merge, tokens_together
from ..ranks.environment import rank
from ..ranks.logging import log_once
from ..step_plan import StepPlanRecord
from .regrouping import why_not_dealt_anew, why_not_regrouped
from .tokens import count_computed_tokens


# Unsloth's own balancing, https://github.com/unslothai/unsloth/blob/main/unsloth/utils/token_budget.py
_UNSLOTH_BALANCES = ("UNSLOTH_TOKEN_BALANCE", "UNSLOTH_TOKEN_BUDGET")

TrainingStep = Callable[[Any, Any, Any], Tensor]


class PlannedSteps:
    """Holds a step's micro-batches back until its last one, and then computes all of them in the planned pieces.

    What surrounds the micro-batches (callbacks, counts of tokens, the number of calls) stays that of the trainer's
    arguments.

    Args:
        trainer (`trl.SFTTrainer`): Whose steps.
        record ([`StepPlanRecord`]): How to compute them.
        splits (`bool`): Whether a piece that does not fit into memory is cut and computed again.
    """

    def __init__(self, trainer: Any, record: StepPlanRecord, *, splits: bool = True) -> None:
        self._trainer, self.record, self._splits = trainer, record, splits
        self._reduce: Callable[[], None] | None = None
        self.on_compute: Callable[[], None] = lambda: None
        self.on_computed: Callable[[], None] = lambda: None
        self.remember_metrics: Callable[[], Undo] = lambda: lambda: None
        self._take_back_metrics: Undo = lambda: None
        self.together = Together.NOT
        self._undo_layers: Undo = lambda: None
        self._kept = 0
        self.cuts, self.drops_layers = 0, False
        self._as_given = why_not_regrouped(trainer)
        self._waiting = 0
        self._pieces: list[Piece] = []
        self._regroups = False
        self._has_said_why = False

    def balance(self, dataloader: Any) -> Any:
        """The loader, with the rows of each step dealt to the ranks by cost, or as it was, and why is logged."""
        if not self.record.plan.balance:
            return dataloader
        if any(os.environ.get(variable, "0") not in ("", "0") for variable in _UNSLOTH_BALANCES):
            log_once("step plan: Unsloth balances the ranks (UNSLOTH_TOKEN_BALANCE), so rows are dealt as it says")
            return dataloader
        trainer = self._trainer
        balanced, reason = dataloader, why_not_dealt_anew(trainer)
        if not reason:
            balanced, reason = balance_rows(
                trainer, dataloader, trainer.train_dataset, trainer.args.gradient_accumulation_steps
            )
        if reason:
            log_once("step plan: rows are dealt by number: %s", reason)
        return balanced

    def follow(self, record: StepPlanRecord) -> None:
        """Computes the steps from the next one on as `record` says."""
        changes_layers = record.plan.layers_kept != self.record.plan.layers_kept
        self.record = record
        if changes_layers:
            self.keep_layers()

    def keep_layers(self, count: int | None = None) -> None:
        """Lets the planned number of layers keep their activations, or `count` of them until it is called again."""
        self.recompute_layers()
        model, plan = self._trainer.model, self.record.plan
        self.record = replace(self.record, layers=len(checkpointed_layers(model)))
        self._kept, self._undo_layers = keep_layers(model, plan.layers_kept if count is None else count)

    def recompute_layers(self) -> None:
        """Takes back what [`keep_layers`] did."""
        self._undo_layers()
        self._kept, self._undo_layers = 0, lambda: None

    def reduce_with(self, reduce: Callable[[], None] | None) -> None:
        """Takes what averages the gradients once all pieces are computed; None where DDP does that in backward."""
        self._reduce = reduce

    def begin_step(self, batches: Sequence[Any], num_items_in_batch: Any) -> None:
        """Makes the pieces of the step that begins.

        Micro-batches are put together, and computed again in halves if they do not fit, if each row adds what it adds
        whatever is beside it, and their tensors are those of documents side by side or of padded rows; with every
        layer recomputed any can be computed again.
        """
        plan = self.record.plan
        self.cuts, self.drops_layers = 0, False
        self._waiting, self._regroups = len(batches), num_items_in_batch is not None and not self._as_given
        self.together = how_together(batches) if self._regroups else Together.NOT
        self._pieces = [[batch] for batch in batches]
        if self.together and plan.pieces is not None:
            self._pieces = make_pieces(batches, plan.pieces, plan.tokens)
        if not self._regroups:
            self._log_why(self._as_given or "their loss is not divided by the tokens of the whole step")
        elif plan.pieces is not None and not self.together:
            self._log_why(f"they are neither padding-free nor alike and padded: {_describe(batches[0])}")

    @property
    def computed_tokens(self) -> int:
        """The tokens of the step that has begun, with the padding of its pieces; 0 for what is no tokens yet."""
        return sum(
            tokens_together(piece) if len(piece) > 1 else count_computed_tokens(piece[0]) for piece in self._pieces
        )

    def _log_why(self, reason: str) -> None:
        if not self._has_said_why:
            log_once("step plan: micro-batches are not put together, because %s", reason)
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
        pieces, self._pieces = self._pieces, []  # a call outside of the trainer's steps finds none
        self.on_compute()
        if self._reduce is None:
            loss = self._compute(pieces, step, model, num_items_in_batch)
            self.on_computed()
            return loss
        with self._trainer.accelerator.no_sync(model):
            loss = self._compute_whatever_fits(pieces, step, model, num_items_in_batch)
        self.on_computed()
        self._reduce()
        return loss

    def _compute(self, pieces: Sequence[Piece], step: TrainingStep, model: Any, num_items_in_batch: Any) -> Tensor:
        """All pieces; the last one's backward ends with the reduction of DDP, so none can be computed again."""
        *first, last = pieces
        loss = torch.zeros((), device=self._trainer.args.device)
        try:
            for piece in first:
                with self._trainer.accelerator.no_sync(model):
                    loss += step(model, merge(piece), num_items_in_batch)
            return loss + step(model, merge(last), num_items_in_batch)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise torch.OutOfMemoryError(
                f"Rank {rank()} ran out of memory while DDP averaged the gradients, and the step cannot be computed "
                "again. Go on from the last checkpoint with `plan='keep'`, a larger `memory_margin`, or "
                f"`gradient_sync='deferred'`. {error}"
            ) from error

    def _compute_whatever_fits(
        self, pieces: Sequence[Piece], step: TrainingStep, model: Any, num_items_in_batch: Any
    ) -> Tensor:
        """All pieces; one that does not fit into memory is cut in two and computed again, without the other ranks."""
        parameters = [p for p in self._trainer.model.parameters() if p.requires_grad]
        total = torch.zeros((), device=self._trainer.args.device)

        def compute(piece: Piece) -> Tensor:
            self._take_back_metrics = self.remember_metrics()
            return step(model, merge(piece), num_items_in_batch)

        for _, loss in compute_parts(pieces, compute, self._cut if self._splits else None, parameters):
            total += loss
        return total

    def _cut(self, piece: Piece, error: str) -> list[Piece]:
        self._take_back_metrics()  # forward had noted them when backward ran out of memory
        parts = cut(piece) if self._regroups else [piece]
        if len(parts) > 1:
            self.cuts += 1
        elif self._kept:
            self.recompute_layers()
            self.drops_layers = True
        else:
            raise torch.OutOfMemoryError(
                f"{_too_large(piece[0])} does not fit into memory by itself on rank {rank()}, with every layer "
                f"recomputed. Lower `max_length`, or load the model in 4 bit. {error}"
            )
        return parts

    # What the ranks tell each other of it

    columns: tuple[str, ...] = ("pieces_cut", "layers_dropped")

    def report(self) -> Mapping[str, float | Tensor]:
        """How often this rank had to cut a piece in this step, and whether it had to recompute all layers."""
        return {"pieces_cut": self.cuts, "layers_dropped": self.drops_layers}

    def decide(self, ranks: Sequence[RankReport]) -> Action | None:
        """What a rank had to do to compute its step, all do from the next one on."""
        without = [number for number, report in enumerate(ranks) if ran_out_of_memory(report)]
        cuts = any(report.values["pieces_cut"] for report in ranks)
        drops_layers = any(report.values["layers_dropped"] for report in ranks)
        return partial(self._need_less, without, cuts, drops_layers) if without else None

    def _need_less(self, ranks: Sequence[int], cuts: bool, drops_layers: bool) -> None:
        plan = self.record.plan
        if cuts:
            pieces = 2 * (plan.pieces or self._trainer.args.gradient_accumulation_steps)
            plan = replace(plan, pieces=pieces, tokens=plan.tokens and max(1, plan.tokens // 2))
        if drops_layers:
            plan = replace(plan, layers_kept=0)
        where = ", ".join(map(str, ranks))
        self.follow(replace(self.record, plan=plan, reason=f"rank {where} ran out of memory"))
        log_once("step plan: %s", self.record)
        self._trainer.record_event("split", ranks=list(ranks), pieces=plan.pieces, layers_kept=plan.layers_kept)


def ran_out_of_memory(report: RankReport) -> bool:
    """Whether a rank could not compute its step as planned."""
    return bool(report.values["pieces_cut"] or report.values["layers_dropped"])


def balance_rows(
    trainer: Any, dataloader: Any, dataset: Any, accumulation: int, lengths_matter: bool = True
) -> tuple[Any, str]:
    """Deals the rows of each step to the ranks by cost, each row once, where that is possible.

    Args:
        trainer (`trl.SFTTrainer`): Whose collator and model say what rows cost.
        dataloader (`DataLoader`): What it made for `dataset`.
        dataset (`datasets.Dataset`): The rows, prepared.
        accumulation (`int`): The micro-batches of a rank in a step.
        lengths_matter (`bool`, *optional*, defaults to `True`): Whether rows of unknown length stay as they are dealt.

    Returns:
        `tuple[DataLoader, str]`: The loader to iterate over, and why its rows are dealt by number, or nothing.
    """
    lengths, reason = row_lengths(dataset, trainer.args.max_length)
    if lengths is None and not lengths_matter and hasattr(dataset, "__len__"):
        lengths = RowLengths.unknown(len(dataset))
    against = reason if lengths is None else why_not_balanced(dataloader, lengths)
    if lengths is None or against:
        return dataloader, str(against)
    padded = not getattr(trainer.data_collator, "padding_free", False)
    return balance_batches(dataloader, lengths, RowCost.from_config(trainer.model.config, padded), accumulation), ""


def _describe(batch: Any) -> str:
    """A batch's tensors and their shapes, or its type."""
    if not isinstance(batch, Mapping):
        return type(batch).__name__
    return ", ".join(f"{name} {list(getattr(value, 'shape', []))}" for name, value in batch.items())


def _too_large(batch: Any) -> str:
    """A batch that cannot be cut, in words."""
    rows, tokens = batch["input_ids"].shape
    return f"One row of {tokens} tokens" if rows == 1 else f"A micro-batch of {rows} x {tokens} tokens"
