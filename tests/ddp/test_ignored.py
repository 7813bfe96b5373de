"""DDP ignores frozen weights where the ranks loaded the same, and only there."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from harness import ROOT, launch
from unsloth_accel.ddp import ignored
from unsloth_accel.fixes import frozen_weights


WORKER = ROOT / "tests" / "workers" / "ignored.py"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> SimpleNamespace:
    out = tmp_path_factory.mktemp("ignored") / "out"
    launched = launch(WORKER, tiny_model, out, timeout=150)
    ranks = [json.loads(out.with_name(f"out-{rank}.json").read_text()) for rank in range(2)]
    return SimpleNamespace(ranks=ranks, stderr=launched.stderr)


@pytest.mark.gloo
def test_ddp_takes_what_is_trained_and_nothing_else(done: SimpleNamespace) -> None:
    for rank in done.ranks:
        assert rank["same"]["parameters"] == rank["same"]["trained"]
        assert rank["same"]["buffers"] == []


@pytest.mark.gloo
def test_what_is_frozen_when_a_trainer_wraps_is_ignored(done: SimpleNamespace) -> None:
    for rank in done.ranks:
        assert "base_model.model.model.norm.weight" in rank["trainer"]["parameters"]
        assert rank["trainer"]["parameters"] == rank["trainer"]["trained"]
        assert rank["trainer"]["buffers"] == []
        assert rank["trainer"]["restored"]


@pytest.mark.gloo
def test_a_frozen_weight_on_another_device_no_longer_stops_ddp(done: SimpleNamespace) -> None:
    for rank in done.ranks:
        assert "the same type of devices" in rank["two devices"]["refused"]
        assert rank["two devices"]["parameters"] == ["0.weight", "0.bias"]


@pytest.mark.gloo
def test_a_forward_broadcasts_no_buffers(done: SimpleNamespace) -> None:
    for rank in done.ranks:
        assert rank["same"]["plain DDP's"] > 0
        assert rank["same"]["broadcasts in a forward"] == 0


@pytest.mark.gloo
def test_the_model_is_as_before_once_ddp_is_built(done: SimpleNamespace) -> None:
    for rank in done.ranks:
        assert rank["same"]["restored"]
        assert rank["undone"] == {"applied": True, "undone": True}


@pytest.mark.gloo
def test_other_bytes_on_a_rank_are_logged_and_become_rank_0s(done: SimpleNamespace) -> None:
    assert done.stderr.count("frozen weights differ from rank 0's on rank 1: DDP broadcasts rank 0's") == 1
    for rank in done.ranks:
        assert rank["different"] == {"all are DDP's": True, "sum": rank["right"]["sum"]}


@pytest.mark.gloo
def test_running_statistics_are_what_stock_ddp_makes_of_them(done: SimpleNamespace) -> None:
    names = ["norm.running_mean", "norm.running_var", "norm.num_batches_tracked"]
    for rank in done.ranks:
        stock, ours = rank["statistics"]["stock"], rank["statistics"]["ours"]
        assert stock["buffers"] == ["scale", *names]
        assert ours["buffers"] == names
        assert ours["statistics"] == stock["statistics"]


@pytest.mark.gloo
def test_the_fix_is_applied_while_a_model_that_was_wrapped_with_it_is_alive(done: SimpleNamespace) -> None:
    for rank in done.ranks:
        assert rank["status"] == {"before": "needed", "wrapped": "applied", "freed": "needed"}


class Block(nn.Module):
    """A frozen weight, a trained one, and a buffer of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(3, 3, bias=False).requires_grad_(False)
        self.trained = nn.Linear(3, 3, bias=False)
        self.tied = self.frozen
        self.norm = nn.BatchNorm1d(3, affine=False)
        self.register_buffer("inv_freq", torch.ones(2), persistent=False)
        self.register_buffer("scale", torch.ones(2))
        self.register_buffer("packed", torch.ones(2, dtype=torch.uint8))


def test_running_statistics_and_their_counter_stay_with_ddp() -> None:
    assert list(ignored.constant_tensors(Block())) == ["frozen.weight", "inv_freq", "packed"]


def test_what_unsloth_lets_ddp_ignore_is_kept_and_restored() -> None:
    model = Block()
    setattr(model, ignored.NAMES, ["inv_freq"])
    assert "inv_freq" not in ignored.constant_tensors(model)
    undo = ignored.ignore(model, ["frozen.weight"])
    assert getattr(model, ignored.NAMES) == {"inv_freq", "frozen.weight"}
    undo()
    assert getattr(model, ignored.NAMES) == ["inv_freq"]
    assert not any(hasattr(tensor, ignored.MARK) for tensor in [*model.parameters(), *model.buffers()])


def test_frozen_weights_on_another_device_are_found() -> None:
    model = Block()
    model.original = nn.Linear(3, 3, device="meta").requires_grad_(False)
    assert ignored.on_another_device(model) == ["original.weight", "original.bias"]


def test_a_model_without_anything_frozen_does_not_need_it() -> None:
    assert not frozen_weights.probe(nn.Linear(2, 2)).needed
    assert frozen_weights.probe(Block()).needed


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(24.0).reshape(4, 6).bfloat16(),
        torch.arange(15, dtype=torch.uint8).reshape(15, 1),
        torch.arange(24.0).reshape(4, 6).t(),
        torch.arange(9.0)[1:],
        torch.tensor(3.0),
        torch.tensor([True, False, True]),
        torch.tensor([float("nan"), 1.0]),
    ],
    ids=["bf16", "packed 4 bit", "not contiguous", "slice", "scalar", "bool", "nan"],
)
def test_the_checksum_sees_every_value(tensor: torch.Tensor) -> None:
    before = ignored.checksum({"weight": tensor})
    assert ignored.checksum({"weight": tensor.clone()}) == before
    assert ignored.checksum({"other": tensor}) != before
    for position in range(tensor.numel()):
        changed = tensor.clone(memory_format=torch.contiguous_format)
        changed.view(-1)[position] = 0 if changed.view(-1)[position] else 1
        assert ignored.checksum({"weight": changed}) != before


def test_the_checksum_sees_type_and_shape() -> None:
    zeros = [torch.zeros(4), torch.zeros(2, 2), torch.zeros(4, dtype=torch.int32)]
    assert len({ignored.checksum({"weight": tensor}) for tensor in zeros}) == 3
