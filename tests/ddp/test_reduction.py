"""The one reduction averages as torch's DDP does, wherever backward is called, and the reports of all ranks arrive."""

from pathlib import Path
from typing import Any

import pytest
import torch

from harness import ROOT, launch, rank_results


WORKER = ROOT / "tests" / "workers" / "data_parallel_run.py"
# Both scale by 1 / ranks and sum; in which order a backend adds the ranks is its own. Each of n - 1 additions of
# numbers that are at most the largest gradient rounds by half an epsilon, on either side.
EPSILON = {"torch.float32": torch.finfo(torch.float32).eps, "torch.bfloat16": torch.finfo(torch.bfloat16).eps}


@pytest.fixture(scope="module", params=[2, 3], ids=["2 ranks", "3 ranks"])
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank found, by rank."""
    out: Path = tmp_path_factory.mktemp("ranks") / "out"
    launch(WORKER, out, num_processes=request.param, timeout=120)
    return rank_results(out, request.param)


def rounding(ranks: list[dict[str, Any]], dtype: str = "torch.float32") -> float:
    return (len(ranks) - 1) * EPSILON[dtype]


@pytest.mark.gloo
@pytest.mark.parametrize("chunks", ["chunks of 1048576", "chunks of 100"])
@pytest.mark.parametrize("case", ["plain", "accumulated", "none on rank 0"])
def test_the_average_is_that_of_ddp(case: str, chunks: str, ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        found = rank["averages"][f"{case}, {chunks}"]
        assert found["difference"] <= rounding(ranks)
        ours, ddp = found["none"]
        assert ours == ddp == ["never.bias", "never.weight"], "None only where no rank has a gradient"


@pytest.mark.gloo
def test_each_precision_is_averaged_in_itself(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        found = rank["two_precisions"]
        assert found["dtypes"] == ["torch.bfloat16", "torch.float32"]
        assert found["difference"] <= rounding(ranks, "torch.bfloat16")


@pytest.mark.gloo
def test_reports_are_read_one_step_later_or_when_asked_for(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        found = rank["reports"]
        assert found["read"] == [0, 1, 2]
        expected = [{"half": number + 0.5, "token": 2**30 + number} for number in range(len(ranks))]
        assert found["heard"] == [expected, expected]
        assert not any(found["failed"])
        assert all(len(set(step)) == 1 and step[0] > 0 for step in found["checksums"])


@pytest.mark.gloo
def test_every_rank_tells_how_long_it_waited_for_the_slowest(ranks: list[dict[str, Any]]) -> None:
    waited = ranks[0]["reports"]["waited"]
    assert min(waited[:-1]) > 0.2, "the last rank came half a second late"
    assert waited[-1] < min(waited[:-1])


@pytest.mark.gloo
def test_a_step_is_one_chunk_and_the_reports(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        counts = rank["counted"]
        assert counts["synced"]["c10d::allreduce_"] == 2
        assert "c10d::allreduce_" not in counts["no_sync"]
        assert counts["closed"] == counts["torch alone"], "closed, DDP is as it was built"


@pytest.mark.gloo
def test_overlapped_only_the_reports_are_exchanged(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        found = rank["overlapped"]
        assert found["reports"] == len(ranks)
        assert found["difference"] == 0.0
        assert found["none"][0] == found["none"][1]


@pytest.mark.gloo
def test_inside_join_ddps_reducer_is_in_charge(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["joined"]["difference"] == 0.0
        assert rank["joined"]["reports"] == 0


@pytest.mark.gloo
def test_a_step_of_two_backwards_is_reported_once(ranks: list[dict[str, Any]]) -> None:
    assert [rank["two_backwards"] for rank in ranks] == [1] * len(ranks)


@pytest.mark.gloo
def test_batch_statistics_are_those_of_ddp(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        ours, ddp = rank["batch_statistics"]
        assert ours[2] == ddp[2] > 0, "batches seen"
        for mine, theirs in zip(ours[:2], ddp[:2], strict=True):
            assert mine == pytest.approx(theirs, rel=1e-5), "weights that differ by roundings have made them"


@pytest.mark.gloo
def test_a_closed_run_keeps_no_model_alive_and_a_copy_is_not_watched(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["freed"] == {"reductions and local gradients after the copy's": [1, False], "alive": False}


@pytest.mark.gloo
def test_a_run_that_nobody_closed_ends_where_the_next_begins(ranks: list[dict[str, Any]]) -> None:
    assert [rank["begun_again"] for rank in ranks] == [None] * len(ranks)


@pytest.mark.gloo
@pytest.mark.parametrize("case", ["unfrozen", "frozen"])
def test_overlapped_a_layer_that_ddps_reducer_does_not_expect_is_named(case: str, ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        for kind, text in rank["overlapped_refrozen"][case]:
            assert kind == "ConfigurationError"
            assert text.startswith("`requires_grad` of second.bias (2 parameters in all) has changed since the model")
            assert "Set `gradient_sync='deferred'`" in text
        assert rank["overlapped_refrozen"]["searched"] == [None, None], "the reducer looks what is used"
