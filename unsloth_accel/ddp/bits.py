"""Sums over the bits of tensors: equal where every bit is, in whatever order a device adds."""

from collections.abc import Mapping

import torch
from torch import Tensor


@torch.no_grad()
def sums_of_bits(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """A number for each tensor, modulo 2**64.

    Every byte is read where it lies, and all sums are enqueued before the first is read, so that each device is waited
    for once: on NVLink a broadcast is so fast that a wait for each tensor would cost more.

    Args:
        tensors (`Mapping[str, torch.Tensor]`): By name, on any devices.

    Returns:
        `dict[str, int]`: The numbers, by name and in the same order.
    """
    sums = {name: _sum(tensor) for name, tensor in tensors.items()}
    by_device: dict[torch.device, list[str]] = {}
    for name, value in sums.items():
        by_device.setdefault(value.device, []).append(name)
    read: dict[str, int] = {}
    for names in by_device.values():
        read |= zip(names, torch.stack([sums[name] for name in names]).tolist(), strict=True)
    return {name: read[name] for name in tensors}


def _sum(tensor: Tensor) -> Tensor:
    """In words of 64 bits, as a CPU is 20 times as fast."""
    data = tensor.data.reshape(-1).view(torch.uint8)
    if data.storage_offset() % 8:  # a slice that cannot be read as 64-bit words where it lies
        data = data.clone()
    whole = data.numel() // 8 * 8
    words, rest = data[:whole].view(torch.int64).sum(), data[whole:]
    return words + rest.sum() if rest.numel() else words
