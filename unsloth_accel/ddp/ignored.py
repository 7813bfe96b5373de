"""Keeps what all ranks loaded alike out of the broadcasts of torch's DDP."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..patching import Undo, undo_all
from ..ranks.logging import log_once
from .mode import parallel_mode


# Where DDP looks for names, and how it marks the tensors: see `_set_params_and_buffers_to_ignore_for_model`.
NAMES = "_ddp_params_and_buffers_to_ignore"
MARK = "_ddp_ignored"


@contextmanager
def ignored_by_ddp(model: nn.Module) -> Iterator[None]:
    """While DDP is built around `model` inside this block, constant tensors that all ranks hold alike stay out of it.

    Call it on every rank, after the process group exists. DDP keeps the names, so the model is as before afterwards.

    Args:
        model (`torch.nn.Module`): What DDP will wrap.
    """
    # Not decided by what this rank's model holds: a rank that holds something else must join, too.
    undo = leave_out(model, agreed_names(model) if parallel_mode(model) is None else [])
    try:
        yield
    finally:
        undo()


def constant_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What training does not change, without what somebody has kept out of DDP already.

    That is frozen parameters, and buffers that are computed and not loaded (`persistent=False`: rope frequencies,
    Gemma's `embed_scale`) or hold integers. Running statistics are neither; DDP goes on to broadcast them.

    Args:
        model (`torch.nn.Module`): What DDP will wrap.

    Returns:
        `dict[str, torch.Tensor]`: By the name that DDP knows. A shared tensor is there once.
    """
    frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad}
    buffers = {name: b for name, b in model.named_buffers() if _is_computed(model, name) or not b.is_floating_point()}
    taken = set(getattr(model, NAMES, ()))
    return {name: tensor for name, tensor in {**frozen, **buffers}.items() if name not in taken}


def _is_computed(model: nn.Module, path: str) -> bool:
    owner, _, name = path.rpartition(".")
    return name in model.get_submodule(owner)._non_persistent_buffers_set


def agreed_names(model: nn.Module) -> list[str]:
    """The names that may stay out of DDP, the same answer on all ranks.

    One checksum a rank is gathered in the group in which DDP would broadcast next, so nobody waits for a rank that
    DDP would not wait for, and every rank sees which ones differ. Unlike a maximum and minimum, the gathered ones name
    the rank.

    Args:
        model (`torch.nn.Module`): What DDP will wrap.

    Returns:
        `list[str]`: All constant tensors if the ranks agree. If not, DDP must broadcast them, save those that it
        cannot take because they lie on another device than what is trained.
    """
    constant = constant_tensors(model)
    sums: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(sums, checksum(constant))
    differing = [rank for rank, digest in enumerate(sums) if digest != sums[0]]
    if not differing:
        return list(constant)
    log_once(
        "frozen weights differ from rank 0's on rank %s: DDP broadcasts rank 0's. Load the same model on every rank",
        ", ".join(map(str, differing)),
    )
    return on_another_device(model)


def on_another_device(model: nn.Module) -> list[str]:
    """Frozen parameters that DDP rejects. Unsloth leaves the replaced embeddings of a 4-bit model on the CPU."""
    devices = {p.device for p in model.parameters() if p.requires_grad}
    return [name for name, p in model.named_parameters() if not p.requires_grad and p.device not in devices]


def checksum(tensors: dict[str, Tensor]) -> str:
    """A digest of names, types, shapes and sums. Integer sums, which do not depend on the order of adding.

    Every byte is read where it lies, nothing is copied, and each device is waited for once: on NVLink a broadcast is
    so fast that a wait for each tensor would cost more.

    Args:
        tensors (`dict[str, torch.Tensor]`): By name, in the same order on all ranks.

    Returns:
        `str`: Hexadecimal digits.
    """
    sums = {name: _sum(tensor) for name, tensor in tensors.items()}
    totals: dict[str, int] = {}
    for device in {total.device for total in sums.values()}:
        names = [name for name, total in sums.items() if total.device == device]
        totals.update(zip(names, torch.stack([sums[name] for name in names]).tolist(), strict=True))
    told = [(name, str(tensor.dtype), tuple(tensor.shape), totals[name]) for name, tensor in tensors.items()]
    return hashlib.sha256(repr(told).encode()).hexdigest()


def _sum(tensor: Tensor) -> Tensor:
    octets = tensor.data.reshape(-1).view(torch.uint8)
    if octets.storage_offset() % 8:  # a slice that cannot be read in words where it lies
        octets = octets.clone()
    whole = octets.numel() // 8 * 8
    words, rest = octets[:whole].view(torch.int64).sum(), octets[whole:]
    return words + rest.sum() if rest.numel() else words


def leave_out(model: nn.Module, names: list[str]) -> Undo:
    """Tells DDP to leave the named tensors alone, besides those it was told before.

    Args:
        model (`torch.nn.Module`): What DDP will wrap.
        names (`list[str]`): Names of parameters and buffers in it.

    Returns:
        `Undo`: Restores the model's list and the tensors' marks.
    """
    ignored = {*getattr(model, NAMES, ()), *names}  # a set, because every parameter is looked up in it
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    undos = [_restore(tensor, MARK) for name, tensor in tensors.items() if name in ignored]
    undos.append(_restore(model, NAMES))
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, ignored)
    return lambda: undo_all(undos)


def _restore(owner: Any, name: str) -> Undo:
    before = dict(vars(owner))

    def undo() -> None:
        if name in before:
            setattr(owner, name, before[name])
        else:
            delattr(owner, name)

    return undo
