"""`UnslothAccelerator`: Accelerate's own results on several ranks, the stock class on one."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import nn

from harness import ROOT, launch, rank_results
from unsloth_accel import ConfigurationError, UnslothAccelerator, UnslothAcceleratorPlugin
from unsloth_accel.ddp.policy import configure_ddp


WORKER = ROOT / "tests" / "workers" / "accelerator.py"
TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    out = tmp_path_factory.mktemp("agree") / "out"
    launched = launch(WORKER, "agree", out, timeout=90)
    return SimpleNamespace(out=out, stderr=launched.stderr, ranks=rank_results(out))


@pytest.mark.gloo
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("mode", ["deferred", "overlapped"])
def test_two_ranks_get_the_weights_of_stock_accelerate(mode: str, accumulation: int, done: SimpleNamespace) -> None:
    for rank in done.ranks:
        ours, stock = rank["runs"][f"{mode} {accumulation}"], rank["runs"][f"stock {accumulation}"]
        assert len(stock["norms"]) == 2 * math.ceil(5 / accumulation)
        assert ours["norms"] == pytest.approx(stock["norms"], rel=TOLERANCE)
        assert ours["weights"] == pytest.approx(stock["weights"], abs=TOLERANCE)
        assert ours["weights"] == done.ranks[0]["runs"][f"{mode} {accumulation}"]["weights"]


@pytest.mark.gloo
def test_freeing_memory_frees_the_model(done: SimpleNamespace) -> None:
    """The stock class, too: else the test could not see it."""
    for rank in done.ranks:
        assert not any(run["alive"] for run in rank["runs"].values())


# Accelerate's own test scripts, with our class in place of its own. On GPUs the stock class passes all of them.
SCRIPTS = {"cpu_gloo": ["test_script", "test_sync"]}
SCRIPTS["ddp_2gpu"] = [*SCRIPTS["cpu_gloo"], "test_distributed_data_loop", "test_ddp_comm_hook"]


@pytest.mark.parametrize(
    ("config", "script"),
    [
        pytest.param(config, script, marks=pytest.mark.gloo if config == "cpu_gloo" else pytest.mark.multigpu(gpus=2))
        for config, scripts in SCRIPTS.items()
        for script in scripts
    ],
)
def test_accelerates_own_scripts_pass(config: str, script: str) -> None:
    if script == "test_distributed_data_loop":
        pytest.importorskip("torchdata", reason="without torchdata the script fails with the stock class, too")
    ended = launch(WORKER.with_name("accelerate_scripts.py"), script, num_processes=None, config=config, timeout=280)
    assert ended.stdout.count(f"passed: {script}") == 2


@pytest.mark.gloo
def test_the_rule_fills_in_what_the_user_left_open(done: SimpleNamespace) -> None:
    rule = {"find_unused_parameters": False, "gradient_as_bucket_view": True, "static_graph": False}
    assert done.ranks[0]["by rule"].items() >= rule.items()
    assert not done.ranks[0]["by rule"]["deferred"]


@pytest.mark.gloo
def test_values_in_the_users_handler_win(done: SimpleNamespace) -> None:
    found = done.ranks[0]["by handler"]
    assert found["find_unused_parameters"]
    assert found["bucket_mb"] == 3
    assert not done.ranks[0]["by plugin"]["gradient_as_bucket_view"]


@pytest.mark.gloo
def test_a_static_graph_or_hook_in_the_users_handler_puts_ddp_in_charge(done: SimpleNamespace) -> None:
    found = done.ranks[0]["static graph"]
    assert found["static_graph"]
    assert not found["deferred"]
    found = done.ranks[0]["hook"]
    assert found["hooks"] == 1
    assert not found["deferred"]


@pytest.mark.gloo
def test_a_split_model_is_refused_on_every_rank(done: SimpleNamespace) -> None:
    for rank in done.ranks:
        kind, text = rank["split"]
        assert kind == "ConfigurationError"
        assert text.startswith("`model` is split over cpu, meta; ")


@pytest.mark.gloo
def test_it_stands_down_for_a_mode_that_splits_the_model_and_says_so_once(done: SimpleNamespace) -> None:
    assert done.stderr.count("Unsloth's tensor parallelism is in charge, unsloth_accel stands down") == 1
    assert [rank["stood down"] for rank in done.ranks] == [
        {"wrapped": "DistributedDataParallel", "runs": 0, "fixes": 0}
    ] * 2


@pytest.mark.gloo
def test_what_of_accelerate_leaves_gradients_to_one_rank_is_refused(done: SimpleNamespace) -> None:
    for rank in done.ranks:
        for kind, text in rank["refused"]:
            assert kind == "GradientSyncError"
            assert "a backward ran under `no_sync()`" in text


@pytest.mark.gloo
def test_where_the_last_step_has_gone_apart_waiting_for_everyone_tells(done: SimpleNamespace) -> None:
    for rank in done.ranks:
        before, (kind, text) = rank["apart at the end"]
        assert before is None
        assert kind == "GradientSyncError"
        assert text.startswith("The weights of rank 1 are not those of rank 0")


@pytest.mark.gloo
def test_a_model_that_only_evaluates_is_left_to_accelerate(done: SimpleNamespace) -> None:
    assert done.ranks[0]["evaluated"] == "Sequential"
    assert "gradients deferred: 0 MiB" not in done.stderr, "nothing is chosen for it"


@pytest.mark.gloo
def test_the_choice_is_said_once_for_each_model_by_rank_0(done: SimpleNamespace) -> None:
    assert done.stderr.count("2 ranks, gradients deferred: `gradient_sync='deferred'` was asked for") == 2
    assert done.stderr.count("2 ranks, gradients overlapped: a communication hook or static graph was asked for") == 2


@pytest.mark.gloo
def test_the_process_group_is_destroyed_at_the_end(done: SimpleNamespace) -> None:
    for rank in range(2):
        assert done.out.with_name(f"out-{rank}.group").read_text() == "destroyed"


@pytest.mark.gloo
def test_an_error_inside_accumulate_stops_every_rank(tmp_path: Path) -> None:
    ended = launch(WORKER, "fail", tmp_path / "out", timeout=120, expect_failure=True)
    seen = json.loads((tmp_path / "out-0.json").read_text())
    assert "Rank 1 failed" in seen["text"]
    kind, text = seen["saved"]
    assert kind == "PeerError", "the step in which it failed is saved before the reports are read"
    assert "they cannot be saved" in text
    assert "[rank0]: unsloth_accel.errors.PeerError: Rank 1 failed" in ended.stderr
    assert '[rank1]:     raise ValueError("a row that only rank 1 has")' in ended.stderr
    assert "[rank1]: ValueError: a row that only rank 1 has" in ended.stderr


@pytest.mark.parametrize(
    "config", [pytest.param("cpu_gloo", marks=pytest.mark.gloo), pytest.param("ddp", marks=pytest.mark.multigpu)]
)
def test_an_overflow_on_one_rank_skips_the_step_on_all(config: str, tmp_path: Path) -> None:
    launch(WORKER, "fp16", tmp_path / "out", config=config, timeout=120)
    first, second = rank_results(tmp_path / "out")
    assert first["deferred"] == second["deferred"]
    assert first["deferred"]["skipped"][2]
    for key in ("skipped", "scale"):
        assert first["deferred"][key] == first["stock"][key]
    assert first["deferred"]["weights"] == pytest.approx(first["stock"]["weights"], abs=1e-4)


def train_alone(accelerator: Accelerator) -> Any:
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.AdamW(model.parameters())
    model, optimizer = accelerator.prepare(model, optimizer)
    for _ in range(3):
        with accelerator.accumulate(model):
            accelerator.backward(model(torch.ones(2, 4)).sum())
            optimizer.step()
            optimizer.zero_grad()
    return model


def test_one_process_is_the_stock_class_bit_for_bit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # torch's optimizers set it for good
    stock = train_alone(Accelerator(cpu=True, gradient_accumulation_steps=2))
    ours = train_alone(UnslothAccelerator(cpu=True, gradient_accumulation_steps=2))
    assert type(ours) is type(stock) is nn.Linear
    assert torch.equal(ours.weight, stock.weight)


def test_an_error_in_one_process_passes_unchanged() -> None:
    accelerator = UnslothAccelerator(cpu=True)
    with pytest.raises(KeyError, match="mine"), accelerator.accumulate(accelerator.prepare(nn.Linear(1, 1))):
        raise KeyError("mine")


def test_ranks_that_would_train_apart_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(ConfigurationError, match=r"`WORLD_SIZE` is 2, but Accelerate sees 1 process: .*use_cpu=True"):
        UnslothAccelerator(cpu=False)


def changing_graph() -> nn.Module:
    """As a mixture of experts: text batches differ in what they train."""
    model: Any = nn.ModuleDict({"experts": nn.ModuleList([nn.Linear(2, 2)])})
    model.config = SimpleNamespace()
    return cast(nn.Module, model)


@pytest.mark.parametrize(
    ("model", "mode", "user_set", "expected"),
    [
        (nn.Linear(2, 2), "overlapped", set(), {"find_unused_parameters": False, "gradient_as_bucket_view": True}),
        (changing_graph(), "overlapped", set(), {"find_unused_parameters": True, "gradient_as_bucket_view": True}),
        (changing_graph(), "overlapped", {"find_unused_parameters"}, {"find_unused_parameters": False}),
        (changing_graph(), "deferred", set(), {"find_unused_parameters": False, "gradient_as_bucket_view": False}),
    ],
    ids=["dense", "experts", "experts, but the user says no", "deferred"],
)
def test_the_rule_for_ddps_settings(
    model: nn.Module, mode: Literal["deferred", "overlapped"], user_set: set[str], expected: dict[str, Any]
) -> None:
    accelerator = Accelerator(cpu=True, kwargs_handlers=[DistributedDataParallelKwargs()])
    choice = configure_ddp(model, UnslothAcceleratorPlugin(gradient_sync=mode), accelerator, user_set)
    assert choice.mode == mode
    assert {name: getattr(accelerator.ddp_handler, name) for name in expected} == expected
