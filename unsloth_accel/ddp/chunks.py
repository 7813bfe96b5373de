"""Groups what is trained into pieces of bounded size, the same on every rank."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn


# It bounds what a reduction needs besides the gradients, and is large enough to keep the links busy.
CHUNK_BYTES = 64 * 2**20


class Chunk(NamedTuple):
    """Parameters whose tensors travel together.

    Args:
        parameters (`list[nn.Parameter]`): Of one precision, in the model's order.
        flat (`torch.Tensor`, *optional*): The buffer they are copied into. None for one parameter of at least
            `CHUNK_BYTES`, which is worked on where it lies.
        views (`list[torch.Tensor]`): The place of each parameter in `flat`, in its shape.
    """

    parameters: list[nn.Parameter]
    flat: Tensor | None
    views: list[Tensor]

    @property
    def num_bytes(self) -> int:
        """What the chunk's tensors take."""
        return sum(map(num_bytes, self.parameters))


class TrainedChunks:
    """What of a model is trained now, in chunks. All chunks of a precision share one buffer.

    Args:
        parameters (`Sequence[nn.Parameter]`): All parameters of the model; those that require a gradient are trained.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._all = list(parameters)
        self.parameters: list[nn.Parameter] = []
        self.chunks: list[Chunk] = []
        self.refresh()

    def refresh(self) -> bool:
        """Takes in what requires a gradient now; returns whether that has changed, as when layers are unfrozen."""
        trained = [p for p in self._all if p.requires_grad]
        if len(trained) == len(self.parameters) and all(a is b for a, b in zip(trained, self.parameters, strict=True)):
            return False
        self.parameters = trained
        self.chunks = list(_group(trained))
        return True


def num_bytes(tensor: Tensor) -> int:
    """Bytes of a dense tensor."""
    return tensor.numel() * tensor.element_size()


def _group(parameters: Sequence[nn.Parameter]) -> Iterator[Chunk]:
    for dtype in dict.fromkeys(p.dtype for p in parameters):
        mine = [p for p in parameters if p.dtype == dtype]
        yield from (Chunk([p], None, []) for p in mine if num_bytes(p) >= CHUNK_BYTES)
        groups = list(_fill([p for p in mine if num_bytes(p) < CHUNK_BYTES]))
        if groups:
            longest = max(sum(p.numel() for p in group) for group in groups)
            buffer = torch.empty(longest, dtype=dtype, device=mine[0].device)
            yield from (_place(group, buffer) for group in groups)


def _place(group: list[nn.Parameter], buffer: Tensor) -> Chunk:
    sizes = [p.numel() for p in group]
    flat = buffer[: sum(sizes)]
    return Chunk(group, flat, [place.view(p.shape) for place, p in zip(flat.split(sizes), group, strict=True)])


def _fill(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Consecutive parameters of together at most `CHUNK_BYTES`."""
    group: list[nn.Parameter] = []
    filled = 0
    for parameter in parameters:
        if group and filled + num_bytes(parameter) > CHUNK_BYTES:
            yield group
            group, filled = [], 0
        group.append(parameter)
        filled += num_bytes(parameter)
    if group:
        yield group
