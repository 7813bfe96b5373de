"""One bit of what is trained changes its number."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from unsloth_accel.recovery.digests import optimizer_state, trained_weights


@pytest.fixture(autouse=True)
def inductor_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # torch's optimizers set it for good


def trained(dtype: torch.dtype = torch.float32) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 1)).to(dtype)
    model[0].bias.requires_grad = False
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(torch.ones(1, 3, dtype=dtype)).sum().backward()
    optimizer.step()
    return model, optimizer


def flip(tensor: Tensor, bit: int) -> None:
    view = tensor.detach().view(-1).view(torch.uint8)
    view[bit // 8] ^= 1 << bit % 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_each_bit_of_a_weight_counts(dtype: torch.dtype) -> None:
    model, _ = trained(dtype)
    before = trained_weights(model)
    assert list(before) == ["0.weight", "1.weight", "1.bias"], "what is frozen is not trained"
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            for bit in range(8 * parameter.numel() * parameter.element_size()):
                flip(parameter, bit)
                after = trained_weights(model)
                assert [key for key in before if before[key] != after[key]] == [name]
                flip(parameter, bit)
    assert trained_weights(model) == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda _, optimizer: flip(next(iter(optimizer.state.values()))["exp_avg"], 77), "exp_avg of 0.weight"),
        (lambda _, optimizer: optimizer.param_groups[0].update(lr=0.2), "lr of group 0"),
        (lambda model, optimizer: optimizer.state.pop(model[1].bias), "exp_avg of 1.bias"),
    ],
)
def test_a_change_of_the_optimizers_state_is_named(
    change: Callable[[nn.Module, torch.optim.Optimizer], object], named: str
) -> None:
    model, optimizer = trained()
    before = optimizer_state(optimizer, model)
    change(model, optimizer)
    after = optimizer_state(optimizer, model)
    assert named in {key for key in before if before.get(key) != after.get(key)}


def test_tensors_that_share_a_storage_are_read_where_they_lie() -> None:
    flat = torch.arange(20, dtype=torch.bfloat16)
    model = nn.Linear(3, 1, bias=False, dtype=torch.bfloat16)
    model.weight = nn.Parameter(flat[5:8].view(1, 3))
    alone = nn.Linear(3, 1, bias=False, dtype=torch.bfloat16)
    alone.weight = nn.Parameter(flat[5:8].clone().view(1, 3))
    assert trained_weights(model) == trained_weights(alone)
