"""Whatever a training loop does, the ranks end equal to each other and to torch's DDP, or all of them hear why not."""

from pathlib import Path
from typing import Any

import pytest
import torch

from harness import ROOT, launch, rank_results


WORKER = ROOT / "tests" / "workers" / "gradient_programs.py"
# A program has at most 3 steps of at most 3 backwards, and clips; the sums of two ranks are exact in any order.
# What may differ is the order in which micro-batches are added: they are added before the average, or between two.
ROUNDINGS = 32 * torch.finfo(torch.float32).eps


@pytest.mark.gloo
@pytest.mark.soak
def test_random_programs_never_train_the_ranks_apart(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    draws: int = request.config.getoption("--draws")
    out = tmp_path / "out"
    launch(WORKER, out, 0, 5 * draws, timeout=90 + 10 * draws)
    for mine, other in zip(*rank_results(out), strict=True):
        judge(mine, other)


def judge(mine: dict[str, Any], other: dict[str, Any]) -> None:
    case = f"seed {mine['seed']}: {mine['program']}"
    ours, stock = mine["ours"], mine["stock"]
    assert ours["error"] == other["ours"]["error"], case
    assert ours["apart"] == 0.0, case
    stock_is_right = stock["error"] is None and stock["apart"] == 0.0
    if ours["error"] is not None:
        assert ours["error"].startswith("GradientSyncError: The optimizer was about to apply gradients"), case
        assert not stock_is_right, f"a false alarm; {case}"
    elif stock_is_right:
        assert mine["difference"] <= ROUNDINGS, case
