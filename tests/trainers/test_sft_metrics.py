"""What TRL notes of a step's forwards becomes a mean over the tokens of all ranks, however many forwards they were."""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from unsloth_accel.ddp.reports import RankReport
from unsloth_accel.trainers.sft_metrics import SFTMetrics, remember_metrics


class Rank:
    """What of a trainer TRL logs from."""

    def __init__(self, micro_batches: int) -> None:
        self.trainer = SimpleNamespace(_metrics={"train": defaultdict(list)}, _total_train_tokens=0)
        self.metrics = SFTMetrics(self.trainer, micro_batches)

    @property
    def logged(self) -> dict[str, list[float]]:
        return dict(self.trainer._metrics["train"])

    def forward(self, entropy: float, labelled: int) -> None:
        """As TRL notes it, and then we."""
        tokens = labelled + 1
        self.trainer._metrics["train"]["entropy"].append(entropy)
        self.trainer._total_train_tokens += tokens
        self.trainer._metrics["train"]["num_tokens"] = [self.trainer._total_train_tokens]
        self.metrics.note_micro_batch(labels(labelled), tokens)


def labels(count: int) -> Tensor:
    return torch.zeros(1, count + 1, dtype=torch.long)


def settle(*ranks: Rank) -> None:
    """What the ranks do when all have reported."""
    numbers = [{name: float(value) for name, value in one.metrics.report().items()} for one in ranks]
    columns = dict.fromkeys(ranks[0].metrics.columns, 0.0)
    reports = [RankReport(False, 0.0, 0.0, 0.0, {**columns, **own}) for own in numbers]
    for one in ranks:
        action: Any = one.metrics.decide(reports)
        action()


def test_a_rank_with_more_pieces_than_micro_batches_counts_with_all_of_them() -> None:
    ranks = [Rank(micro_batches=1) for _ in range(2)]
    ranks[0].forward(entropy=1.0, labelled=10)
    for entropy, labelled in ((2.0, 20), (5.0, 10)):
        ranks[1].forward(entropy, labelled)
    settle(*ranks)
    for one in ranks:
        assert one.logged["entropy"] == [pytest.approx((10 + 40 + 50) / 40)]
        assert one.logged["num_tokens"] == [11 + 21 + 11]


def test_what_was_logged_in_the_middle_of_a_step_is_gone_and_its_tokens_count() -> None:
    ranks = [Rank(micro_batches=2) for _ in range(2)]
    for one in ranks:
        one.forward(entropy=1.0, labelled=10)
        one.trainer._metrics["train"].clear()
    ranks[0].forward(entropy=2.0, labelled=10)
    ranks[1].forward(entropy=4.0, labelled=10)
    settle(*ranks)
    assert [one.logged["num_tokens"] for one in ranks] == [[44], [44]]
    assert all(one.trainer._total_train_tokens == 44 for one in ranks)


def test_a_forward_that_is_computed_again_is_noted_once() -> None:
    rank = Rank(micro_batches=1)
    rank.forward(entropy=1.0, labelled=10)
    settle(rank)
    take_back, forget = remember_metrics(rank.trainer), rank.metrics.remember()
    rank.forward(entropy=9.0, labelled=20)
    take_back()
    forget()
    rank.forward(entropy=2.0, labelled=10)
    rank.forward(entropy=4.0, labelled=10)
    settle(rank)
    assert rank.logged["entropy"] == [1.0, pytest.approx(3.0)]
    assert rank.trainer._total_train_tokens == 33
