"""Finds the end of each backward whose gradients are to be those of all ranks, whoever calls it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .hooks import only_on


class EndOfBackward:
    """Keeps DDP's contract: a backward whose forward ran with `require_backward_grad_sync` ends with a reduction.

    Hooks on the outputs of the forward fire when a backward reaches them, whether `accelerator.backward`,
    `loss.backward()` or another trainer's `training_step` started it, and queue one callback of the autograd engine,
    which runs when the outermost backward is complete; FSDP does the same. Reentrant checkpointing, whose inner
    backwards have queues of their own, does not disturb it.

    Args:
        ddp (`DistributedDataParallel`):
            The wrapped model. `no_sync()` keeps its meaning.
        deferred (`bool`):
            Whether DDP's own reducer stays unarmed. It arms in the forward, so that is where it is kept from it.
        on_synced (`Callable[[], None]`):
            Called at the end of a backward that has to end with equal gradients.
        on_local (`Callable[[], None]`):
            Called while a backward runs whose forward was under `no_sync()` or did not go through `ddp`.
        on_joined (`Callable[[], None]`):
            Called instead of `on_synced` where DDP's reducer did the work, because the ranks are in `ddp.join()`.
    """

    def __init__(
        self,
        ddp: DistributedDataParallel,
        *,
        deferred: bool,
        on_synced: Callable[[], None],
        on_local: Callable[[], None],
        on_joined: Callable[[], None],
    ) -> None:
        self._deferred = deferred
        self._on_synced, self._on_local, self._on_joined = on_synced, on_local, on_joined
        self._syncs = False  # whether the forward that runs now is one that DDP would follow with a reduction
        self._queued = False
        self._joining = False
        self._handles = (
            ddp.register_forward_pre_hook(only_on(ddp, self._before_forward)),
            ddp.module.register_forward_hook(only_on(ddp.module, self._after_model)),
            ddp.register_forward_hook(only_on(ddp, self._after_forward), always_call=True),
        )

    def close(self) -> None:
        """Removes the hooks: DDP is as it was built."""
        for handle in self._handles:
            handle.remove()

    def _before_forward(self, ddp: DistributedDataParallel, args: Any) -> None:
        self._queued = False  # left by a backward that raised
        self._syncs, self._joining = ddp.require_backward_grad_sync, is_joining(ddp)
        if self._deferred and not self._joining:
            ddp.require_backward_grad_sync = False

    def _after_forward(self, ddp: DistributedDataParallel, args: Any, output: Any) -> None:
        if self._deferred and not self._joining:
            ddp.require_backward_grad_sync = self._syncs
            # What DDP sets after its forward: buffers are broadcast before the forward that follows a reduction.
            ddp.require_forward_param_sync = self._syncs and torch.is_grad_enabled()
        self._syncs = False

    def _after_model(self, model: nn.Module, args: Any, output: Any) -> None:
        if torch.is_grad_enabled():
            self._watch(output)

    def _watch(self, output: Any) -> None:
        react = self._queue if self._syncs else self._note_local
        for tensor in tensors_in(output):
            if tensor.grad_fn is not None:
                tensor.register_hook(react)

    def _queue(self, gradient: Tensor) -> None:
        if not self._queued:
            self._queued = True
            torch.autograd.Variable._execution_engine.queue_callback(self._end)

    def _note_local(self, gradient: Tensor) -> None:
        self._on_local()

    def _end(self) -> None:
        self._queued = False
        if self._joining:
            self._on_joined()
        else:
            self._on_synced()


def is_joining(ddp: DistributedDataParallel) -> bool:
    """Whether the ranks are in `ddp.join()`, where one without data answers the collectives of DDP's reducer.

    torch does not take the setting back at the end of the block, so DDP's reducer stays in charge after it, too.
    """
    return bool(ddp._join_config.enable)


def tensors_in(output: Any) -> Iterator[Tensor]:
    """The tensors in what a forward returned: in mappings, sequences and dataclasses, at any depth."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from tensors_in(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from tensors_in(value)
    elif is_dataclass(output) and not isinstance(output, type):
        for field in fields(output):
            yield from tensors_in(getattr(output, field.name))
