"""What TRL's SFTTrainer logs, gathered once a step instead of in every micro-batch."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from ..ddp.reports import Action, RankReport


# What TRL logs per micro-batch: means over the labelled tokens of all ranks, and a mean over the ranks.
TOKEN_MEANS = ("entropy", "mean_token_accuracy")
_RANK_MEANS = ("aux_loss",)
_METRICS = TOKEN_MEANS + _RANK_MEANS


class SFTMetrics:
    """Keeps this rank's metrics of each micro-batch, and puts those of all ranks into TRL's log.

    Args:
        trainer (`trl.SFTTrainer`): Whose `_metrics` and `_total_train_tokens` TRL logs.
        micro_batches (`int`): How many micro-batches a step has at most. A loss that is computed more often in a step
            (R-Drop) is gathered by TRL itself, as without us.
    """

    def __init__(self, trainer: Any, micro_batches: int) -> None:
        self._trainer = trainer
        self._micro_batches = micro_batches
        self._noted: list[dict[str, float]] = []
        self._tokens = 0.0
        slots = range(micro_batches)
        self.columns = ("num_tokens", *(f"{name}_{slot}" for slot in slots for name in ("labelled", *_METRICS)))

    @property
    def is_full(self) -> bool:
        """Whether the step's micro-batches have all been noted."""
        return len(self._noted) == self._micro_batches

    def begin_step(self) -> None:
        """Forgets what is left of a step that ended before its reduction; TRL forgets it, too."""
        for name in _METRICS:
            logged = self._trainer._metrics["train"].get(name)
            if logged and self._noted:
                del logged[-len(self._noted) :]
        self._noted, self._tokens = [], 0.0

    def note_micro_batch(self, labels: Tensor | None, tokens: float) -> None:
        """Keeps what TRL has just logged, if this backend of Unsloth logs it, and the tokens it counted."""
        self._tokens += tokens
        logged = self._trainer._metrics["train"]
        if labels is not None and not self.is_full and any(name in logged for name in _METRICS):
            metrics = {name: logged[name][-1] for name in _METRICS if name in logged}
            self._noted.append({"labelled": float(count_labelled(labels)), **metrics})

    def report(self) -> Mapping[str, float | Tensor]:
        """This rank's metrics of each micro-batch."""
        numbers = {f"{name}_{slot}": value for slot, noted in enumerate(self._noted) for name, value in noted.items()}
        return {"num_tokens": self._tokens, **numbers}

    def decide(self, ranks: Sequence[RankReport]) -> Action | None:
        """Every rank logs the metrics of all."""
        return partial(self._put_into_log, ranks)

    def _put_into_log(self, ranks: Sequence[RankReport]) -> None:
        logged = self._trainer._metrics["train"]
        count = len(self._noted)
        for slot in range(count):
            for name in _METRICS:
                if name in logged:
                    logged[name][slot - count] = _mean(ranks, name, slot)
        if "num_tokens" in logged:
            self._trainer._total_train_tokens += sum(report.values["num_tokens"] for report in ranks) - self._tokens
            logged["num_tokens"] = [self._trainer._total_train_tokens]
        self._noted, self._tokens = [], 0.0


def count_labelled(labels: Tensor) -> Tensor:
    """The tokens of a batch that are predicted, a scalar; the first of a row has nothing before it."""
    return (labels[..., 1:] != -100).sum()


def _mean(ranks: Sequence[RankReport], name: str, slot: int) -> float:
    """The mean of one metric of one micro-batch as TRL gathers it."""
    weights = [report.values[f"labelled_{slot}"] if name in TOKEN_MEANS else 1.0 for report in ranks]
    total = sum(weights)
    weighted = sum(w * report.values[f"{name}_{slot}"] for w, report in zip(weights, ranks, strict=True))
    return weighted / total if total else 0.0
