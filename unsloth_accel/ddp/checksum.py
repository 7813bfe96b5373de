"""A number that differs between ranks that train different weights."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .chunks import Chunk


# What one step reads at most, so that the check costs little where much is trained; the next step goes on behind it.
STEP_BYTES = 256 * 2**20
# float64, in which the number travels, holds integers of 53 bits exactly.
_MASK = 2**48 - 1
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class WeightsChecksum:
    """Sums the bits of weights as integers: exact, and the same whatever the order in which a device adds."""

    def __init__(self) -> None:
        self._next = 0

    @torch.no_grad()
    def compute(self, chunks: Sequence[Chunk]) -> Tensor | None:
        """The checksum of the chunks whose turn it is.

        Args:
            chunks (`Sequence[Chunk]`): All that is trained. Their buffers are overwritten.

        Returns:
            `torch.Tensor`, *optional*: A float64 scalar on the weights' device; None where nothing is trained.
        """
        total, read = None, 0
        for _ in chunks:
            chunk = chunks[self._next % len(chunks)]
            if total is not None and read + chunk.num_bytes > STEP_BYTES:
                break
            bits = _bits(chunk)
            total = bits if total is None else total.add_(bits)
            read += chunk.num_bytes
            self._next += 1
        return None if total is None else total.bitwise_and_(_MASK).double()


@torch.no_grad()
def checksum_of_all(chunks: Sequence[Chunk]) -> int:
    """The checksum of all chunks. Waits for the device.

    Args:
        chunks (`Sequence[Chunk]`): All that is trained. Their buffers are overwritten.

    Returns:
        `int`: The checksum.
    """
    return sum(int(bits) for bits in [_bits(chunk) for chunk in chunks]) & _MASK


def _bits(chunk: Chunk) -> Tensor:
    if chunk.flat is None:
        flat = chunk.parameters[0].detach().contiguous().view(-1)
    else:
        torch._foreach_copy_(chunk.views, [p.detach() for p in chunk.parameters])
        flat = chunk.flat
    return flat.view(_INTEGERS[flat.element_size()]).sum(dtype=torch.int64)
