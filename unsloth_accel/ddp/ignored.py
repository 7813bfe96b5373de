"""Tells torch's DDP to ignore what all ranks loaded alike: it would broadcast it."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..patching import Undo, undo_all
from ..ranks.logging import log_once
from .bits import sums_of_bits
from .mode import parallel_mode


# Where DDP looks for names, and how it marks the tensors: see `_set_params_and_buffers_to_ignore_for_model`.
NAMES = "_ddp_params_and_buffers_to_ignore"
MARK = "_ddp_ignored"

# Models that are alive and were wrapped while DDP ignored something of them.
_wrapped: WeakSet[nn.Module] = WeakSet()


@contextmanager
def ignored_by_ddp(model: nn.Module) -> Iterator[None]:
    """DDP that is built around `model` inside this block ignores the constant tensors that all ranks hold alike.

    Call it on every rank, after the process group exists. DDP keeps the names, so the model is as before afterwards.

    Args:
        model (`torch.nn.Module`): What DDP will wrap.
    """
    # Not decided by what this rank's model holds: a rank that holds something else must join, too.
    names = agreed_names(model) if parallel_mode(model) is None else []
    undo = ignore(model, names)
    try:
        yield
    finally:
        undo()
    if names:
        _wrapped.add(model)


def is_ignoring(model: nn.Module | None) -> bool:
    """Whether DDP was built around `model`, or any model that is alive, while it ignored something of it."""
    return model in _wrapped if model is not None else bool(_wrapped)


def constant_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What training does not change, without what DDP was told to ignore before.

    That is frozen parameters, and buffers that are computed and not loaded (`persistent=False`: rope frequencies,
    Gemma's `embed_scale`) or hold integers, as packed weights do. Running statistics are neither, and a single integer
    is their counter (`num_batches_tracked`): DDP goes on to broadcast them.

    Args:
        model (`torch.nn.Module`): What DDP will wrap.

    Returns:
        `dict[str, torch.Tensor]`: By the name that DDP knows. A shared tensor is there once.
    """
    frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad}
    buffers = {name: b for name, b in model.named_buffers() if _is_computed(model, name) or _holds_integers(b)}
    ignored = set(getattr(model, NAMES, ()))
    return {name: tensor for name, tensor in {**frozen, **buffers}.items() if name not in ignored}


def _is_computed(model: nn.Module, path: str) -> bool:
    owner, _, name = path.rpartition(".")
    return name in model.get_submodule(owner)._non_persistent_buffers_set


def _holds_integers(buffer: Tensor) -> bool:
    return buffer.dim() > 0 and not buffer.is_floating_point()


def agreed_names(model: nn.Module) -> list[str]:
    """The names that DDP may ignore, the same answer on all ranks.

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
    """A digest of names, types, shapes and sums of bits.

    Args:
        tensors (`dict[str, torch.Tensor]`): By name, in the same order on all ranks.

    Returns:
        `str`: Hexadecimal digits.
    """
    sums = sums_of_bits(tensors)
    rows = [(name, str(tensor.dtype), tuple(tensor.shape), sums[name]) for name, tensor in tensors.items()]
    return hashlib.sha256(repr(rows).encode()).hexdigest()


def ignore(model: nn.Module, names: list[str]) -> Undo:
    """Tells DDP to ignore the named tensors, besides those it was told before.

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
