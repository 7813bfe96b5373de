"""The one reduction: what each rank's gradients become, the mean of all."""

import time
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .chunks import Chunk, TrainedChunks


POLL_SECONDS = 0.01


class GradientReduction:
    """Averages gradients over the ranks as torch's DDP does: scaled by 1 / ranks, then summed, in their own precision.

    Small gradients are copied into a buffer, summed there and copied back, chunk by chunk; a large one is summed where
    it lies. Nothing here waits for the device.

    Args:
        trained ([`TrainedChunks`]): What is trained.
        group (`dist.ProcessGroup`): The ranks.
    """

    def __init__(self, trained: TrainedChunks, group: dist.ProcessGroup) -> None:
        self._trained = trained
        self._group = group
        self._scale = 1.0 / dist.get_world_size(group)

    def average(self) -> list[int]:
        """Replaces each gradient by the mean over the ranks; a missing one counts as zero.

        Returns:
            `list[int]`: The indices, in the trained parameters, of those that had no gradient on this rank. They have
            one now; who learns that no rank had one takes it away with [`forget`].
        """
        parameters = self._trained.parameters
        missing = [index for index, p in enumerate(parameters) if p.grad is None]
        for index in missing:
            parameters[index].grad = torch.zeros_like(parameters[index])
        for chunk in self._trained.chunks:
            self._average(chunk)
        return missing

    def _average(self, chunk: Chunk) -> None:
        gradients = [_gradient(p) for p in chunk.parameters]
        if chunk.flat is None:
            (alone,) = chunk.parameters
            alone.grad = gradients[0].contiguous()  # it is summed where it lies
            dist.all_reduce(alone.grad.mul_(self._scale), group=self._group)
            return
        torch._foreach_copy_(chunk.views, gradients)
        dist.all_reduce(chunk.flat.mul_(self._scale), group=self._group)
        torch._foreach_copy_(gradients, chunk.views)

    def forget(self, indices: Sequence[int]) -> None:
        """Makes gradients that no rank had `None` again, so that an optimizer leaves the weight alone."""
        for index in indices:
            self._trained.parameters[index].grad = None

    def join_as_failed(self, deadline: float) -> bool:
        """Takes part in the reduction that the other ranks run, with zeros, so that they do not wait for ever.

        Args:
            deadline (`float`): When to give up, on the clock of `time.monotonic`.

        Returns:
            `bool`: Whether the others came in time.
        """
        for parameters, flat, _ in self._trained.chunks:
            for parameter in parameters:
                parameter.grad = None
            zeros = torch.zeros_like(parameters[0]) if flat is None else flat.zero_()
            if not wait_until(deadline, dist.all_reduce(zeros, group=self._group, async_op=True)):
                return False
        return True


def wait_until(deadline: float, work: dist.Work | None) -> bool:
    """Waits for a collective, but not for ever.

    Args:
        deadline (`float`): When to give up, on the clock of `time.monotonic`.
        work (`dist.Work`): What `async_op=True` returned.

    Returns:
        `bool`: Whether the collective is complete.
    """
    assert work is not None, "async_op=True returns one"
    while not work.is_completed():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def _gradient(parameter: nn.Parameter) -> Tensor:
    gradient = parameter.grad
    assert gradient is not None, "`average` has filled in what was missing"
    return gradient
