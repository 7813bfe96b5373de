"""Numbers that stand for what a rank trains: equal where every bit is."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


Held = dict[str, Any]


def trained_weights(model: nn.Module) -> Held:
    """A number for each parameter that is trained, by its name."""
    return _digests({name: p.detach() for name, p in model.named_parameters() if p.requires_grad})


def optimizer_state(optimizer: Any, model: nn.Module) -> Held:
    """A number for each tensor of an optimizer's state, and its other values as they are.

    Args:
        optimizer (`torch.optim.Optimizer`): Also one that Accelerate has wrapped.
        model (`nn.Module`): What it trains, for the names.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    values: Held = {}
    for number, group in enumerate(optimizer.param_groups):
        values |= {f"{key} of group {number}": value for key, value in group.items() if _is_number(value)}
        for place, parameter in enumerate(group["params"]):
            name = names.get(id(parameter), f"parameter {place} of group {number}")
            state = optimizer.state.get(parameter, {})
            values |= {f"{key} of {name}": value for key, value in state.items()}
    # Quantised states are classes of their own; their bits are in tensors that only they know.
    tensors = {name: value for name, value in values.items() if type(value) is Tensor}
    return _digests(tensors) | {name: value for name, value in values.items() if _is_number(value)}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))


@torch.no_grad()
def _digests(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """All are enqueued before the first is read, so a GPU is waited for once a device."""
    sums = {name: _sum_of_bits(tensor) for name, tensor in tensors.items()}
    by_device: dict[torch.device, list[str]] = {}
    for name, value in sums.items():
        by_device.setdefault(value.device, []).append(name)
    read: dict[str, int] = {}
    for names in by_device.values():
        read |= zip(names, torch.stack([sums[name] for name in names]).tolist(), strict=True)
    return {name: read[name] for name in tensors}


def _sum_of_bits(tensor: Tensor) -> Tensor:
    """Modulo 2**64, so the same in whatever order a device adds. In words of 64 bits, as a CPU is 20 times as fast."""
    flat = tensor.contiguous().view(-1).view(torch.uint8)
    if flat.storage_offset() % 8:
        flat = flat.clone()
    whole = flat.numel() // 8 * 8
    return flat[:whole].view(torch.int64).sum() + flat[whole:].sum()
