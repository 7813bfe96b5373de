"""What TRL's SFTTrainer logs, gathered once a step instead of in every micro-batch."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from ..ddp.reports import Action, RankReport


# What TRL logs per micro-batch: means over the labelled tokens of all ranks, and a mean over the ranks.
TOKEN_MEANS = ("entropy", "mean_token_accuracy")
_RANK_MEANS = ("aux_loss",)
_METRICS = TOKEN_MEANS + _RANK_MEANS


class Noted(NamedTuple):
    """What TRL noted of one forward.

    Args:
        labelled (`float`): The tokens that were predicted.
        values (`dict[str, float]`): Its metrics, of this rank.
        places (`dict[str, tuple[list[float], int]]`): The list of each in TRL's log, and its index there.
    """

    labelled: float
    values: dict[str, float]
    places: dict[str, tuple[list[float], int]]


class SFTMetrics:
    """Keeps this rank's metrics of each micro-batch, and puts those of all ranks into TRL's log.

    Args:
        trainer (`trl.SFTTrainer`): Whose `_metrics` and `_total_train_tokens` TRL logs.
        micro_batches (`int`): How many micro-batches a step has as its arguments say. What is noted beyond them, as of
            a plan with more pieces, counts to the last one.
    """

    def __init__(self, trainer: Any, micro_batches: int) -> None:
        self._trainer = trainer
        self._micro_batches = micro_batches
        self._noted: list[Noted] = []
        self._tokens = 0.0
        of_slots = [f"{name}_{slot}" for slot in range(micro_batches) for name in ("labelled", *_METRICS)]
        self.columns = ("num_tokens", "noted", *of_slots)

    @property
    def is_full(self) -> bool:
        """Whether the step's micro-batches have all been noted."""
        return len(self._noted) >= self._micro_batches

    def begin_step(self) -> None:
        """Forgets what is left of a step that ended before its reduction; TRL forgets it, too."""
        for name in _METRICS:
            self._replace(name, [])
        self._noted, self._tokens = [], 0.0

    def note_micro_batch(self, labels: Tensor | None, tokens: float) -> None:
        """Keeps what TRL has just logged, if this backend of Unsloth logs it, and the tokens it counted."""
        self._tokens += tokens
        logged = {name: values for name, values in self._trainer._metrics["train"].items() if name in _METRICS}
        if labels is not None and logged:
            places = {name: (values, len(values) - 1) for name, values in logged.items()}
            self._noted.append(
                Noted(float(count_labelled(labels)), {name: values[-1] for name, values in logged.items()}, places)
            )

    def remember(self) -> Callable[[], None]:
        """A function that forgets what will be noted from here on, of a forward whose backward is computed again."""
        count, tokens = len(self._noted), self._tokens

        def forget() -> None:
            del self._noted[count:]
            self._tokens = tokens

        return forget

    def report(self) -> Mapping[str, float | Tensor]:
        """This rank's metrics of each micro-batch."""
        numbers = {"num_tokens": self._tokens, "noted": float(min(len(self._noted), self._micro_batches))}
        for slot in range(int(numbers["noted"])):
            last = slot == self._micro_batches - 1
            labelled, values = _together(self._noted[slot:] if last else self._noted[slot : slot + 1])
            numbers |= {f"labelled_{slot}": labelled, **{f"{name}_{slot}": value for name, value in values.items()}}
        return numbers

    def decide(self, ranks: Sequence[RankReport]) -> Action | None:
        """Every rank logs the metrics of all."""
        return partial(self._put_into_log, ranks)

    def _put_into_log(self, ranks: Sequence[RankReport]) -> None:
        slots = range(int(max(report.values["noted"] for report in ranks)))
        for name in _METRICS:
            self._replace(name, [_mean(ranks, name, slot) for slot in slots])
        self._trainer._total_train_tokens += sum(report.values["num_tokens"] for report in ranks) - self._tokens
        logged = self._trainer._metrics["train"]
        if "num_tokens" in logged:
            logged["num_tokens"] = [self._trainer._total_train_tokens]
        self._noted, self._tokens = [], 0.0

    def _replace(self, name: str, means: Sequence[float]) -> None:
        """Puts the slots' means where they were noted. Who logs in mid-step has emptied TRL's lists by then."""
        values = self._trainer._metrics["train"].get(name)
        places = [one.places.get(name, ([], 0)) for one in self._noted]
        left = [index for where, index in places if where is values]
        if values is None or not left:
            return
        gone = {min(slot, self._micro_batches - 1) for slot, (where, _) in enumerate(places) if where is not values}
        for index in reversed(left):
            del values[index]
        values[left[0] : left[0]] = [mean for slot, mean in enumerate(means) if slot not in gone]
        if not values:  # TRL divides by their number
            del self._trainer._metrics["train"][name]


def _together(noted: Sequence[Noted]) -> tuple[float, dict[str, float]]:
    """The labelled tokens of several forwards, and the means of their metrics over these."""
    if len(noted) == 1:
        return noted[0].labelled, noted[0].values
    labelled = sum(one.labelled for one in noted)
    names = dict.fromkeys(name for one in noted for name in one.values)
    weigh = {name: sum(one.labelled * one.values.get(name, 0.0) for one in noted) for name in names}
    return labelled, {name: total / labelled if labelled else 0.0 for name, total in weigh.items()}


def remember_metrics(trainer: Any) -> Callable[[], None]:
    """A function that takes back what TRL will count and note while training from here on.

    Args:
        trainer (`trl.SFTTrainer`): Who computes a part of a step that may not fit into memory.
    """
    tokens, logged = trainer._total_train_tokens, trainer._metrics["train"]
    lengths = {name: len(values) for name, values in logged.items()}

    def take_back() -> None:
        trainer._total_train_tokens = tokens
        for name, values in logged.items():
            del values[lengths.get(name, 0) :]

    return take_back


def count_labelled(labels: Tensor) -> Tensor:
    """The tokens of a batch that are predicted, a scalar; the first of a row has nothing before it."""
    return (labels[..., 1:] != -100).sum()


def _mean(ranks: Sequence[RankReport], name: str, slot: int) -> float:
    """The mean of one metric of one micro-batch as TRL gathers it."""
    weights = [report.values[f"labelled_{slot}"] if name in TOKEN_MEANS else 1.0 for report in ranks]
    total = sum(weights)
    weighted = sum(w * report.values[f"{name}_{slot}"] for w, report in zip(weights, ranks, strict=True))
    return weighted / total if total else 0.0
