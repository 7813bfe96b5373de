"""The fixes that change something of the process: each shows the defect, the remedy and the undo."""

import logging
import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from unsloth_accel.fixes import device_map, quiet_ranks, resume_on_cpu, training_banner, unsloth_telemetry


@pytest.fixture(params=["0", "1"])
def rank(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("RANK", request.param)
    monkeypatch.setenv("WORLD_SIZE", "4")
    return str(request.param)


def test_an_optimizer_state_loads_for_a_cpu_with_an_index(tmp_path: Path) -> None:
    import torch

    before = torch.load
    torch.save({"step": torch.ones(2)}, tmp_path / "optimizer.pt")
    load: dict[str, Any] = {
        "f": tmp_path / "optimizer.pt",
        "map_location": torch.device("cpu", 0),
        "weights_only": True,
    }
    with pytest.raises(RuntimeError, match="don't know how to restore data location"):
        torch.load(**load)
    undo = resume_on_cpu.apply(None)
    assert torch.equal(torch.load(**load)["step"], torch.ones(2))
    assert torch.load(tmp_path / "optimizer.pt")["step"].device.type == "cpu"
    undo()
    assert torch.load is before


def test_resuming_is_left_alone_on_accelerators(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    assert not resume_on_cpu.probe(None).needed
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert resume_on_cpu.probe(None).needed


@pytest.mark.parametrize("name", training_banner.LOGGERS)
def test_the_banner_is_printed_once_with_all_gpus(name: str, rank: str, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger(name)
    filters = list(logger.filters)
    undo = training_banner.apply(None)
    logger.warning("==((====))==  Unsloth | Num GPUs used = 1\n   Num examples = 8")
    logger.warning("something else")
    undo()
    expected = ["==((====))==  Unsloth | Num GPUs used = 4\n   Num examples = 8"] if rank == "0" else []
    assert caplog.messages == [*expected, "something else"]
    assert logger.filters == filters


def test_unsloth_prints_on_rank_0_only(
    rank: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = types.ModuleType("UnslothSomeTrainer")
    exec("def speak():\n    print('patched')", vars(module))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    undo = quiet_ranks.apply(None)
    module.speak()
    assert capsys.readouterr().out == ("patched\n" if rank == "0" else "")
    assert undo is not None
    undo()
    module.speak()
    assert capsys.readouterr().out == "patched\n"
    assert "print" not in vars(module)


def test_bars_of_loading_are_shown_on_rank_0_only(rank: str) -> None:
    from transformers.utils import logging

    undo = quiet_ranks.apply(None)
    assert logging.is_progress_bar_enabled() == (rank == "0")
    assert undo is not None
    undo()
    assert logging.is_progress_bar_enabled()


def test_bars_that_the_user_switched_off_stay_off(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.utils import logging

    monkeypatch.setenv("RANK", "1")
    logging.disable_progress_bar()
    try:
        undo = quiet_ranks.apply(None)
        if undo is not None:  # a module of Unsloth's is loaded
            undo()
        assert not logging.is_progress_bar_enabled()
    finally:
        logging.enable_progress_bar()


def test_telemetry_is_left_to_rank_0(rank: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(unsloth_telemetry.VARIABLE, raising=False)
    assert unsloth_telemetry.probe(None).needed
    undo = unsloth_telemetry.apply(None)
    assert (unsloth_telemetry.VARIABLE in os.environ) == (rank != "0")
    undo()
    assert unsloth_telemetry.VARIABLE not in os.environ
    monkeypatch.setenv(unsloth_telemetry.VARIABLE, "0")
    assert not unsloth_telemetry.probe(None).needed


@pytest.mark.parametrize("given", ["cuda:0", 0, {"": 0}, {"": "cuda:0"}])
def test_a_map_to_the_first_gpu_is_recognised(given: object) -> None:
    assert device_map.names_first_gpu(given)


@pytest.mark.parametrize("given", ["cuda:1", "cpu", "auto", None, {"": 1}, {"": "cpu"}, {"lm_head": 0, "": 0}, {}])
def test_a_map_that_a_user_may_mean_is_left_alone(given: object) -> None:
    assert not device_map.names_first_gpu(given)
