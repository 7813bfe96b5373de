"""What the search for a plan asks of the memory that is measured; whole searches: test_planned_steps.py."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from unsloth_accel.trainers import plan_search
from unsloth_accel.trainers.plan_search import PlanSearch


@pytest.mark.parametrize(("mode", "in_buckets"), [("deferred", False), ("overlapped", True), ("overlapped", False)])
def test_gradients_that_lie_in_the_buckets_of_ddp_are_there_before_the_step(
    mode: str, in_buckets: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(plan_search, "MemoryProbe", lambda *arguments: asked.append(arguments))
    trainer = SimpleNamespace(
        model=nn.Linear(4, 4, bias=False),
        args=SimpleNamespace(device=torch.device("cpu")),
        gradient_sync=SimpleNamespace(mode=mode),
        accelerator=SimpleNamespace(ddp_handler=SimpleNamespace(gradient_as_bucket_view=in_buckets)),
    )
    planned: Any = SimpleNamespace(keep_layers=lambda count: None)
    PlanSearch(trainer, planned, margin=0.1)._start_probe()
    ((_, _, gradient_bytes, _),) = asked
    assert gradient_bytes == (0 if mode == "overlapped" and in_buckets else 64)
