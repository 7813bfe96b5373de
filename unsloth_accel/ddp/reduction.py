"""When gradients are averaged over the ranks, and the one agreed reduction that does it."""

import time
import traceback
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from ..errors import PeerError
from ..ranks.store import fetch_error, publish_error


class RankReport(NamedTuple):
    """What one rank tells all others in the reduction of a step.

    Args:
        failed (`bool`): Whether it failed in this step.
        tokens (`float`): The tokens it computed in this step.
        wait_seconds (`float`): How long it waited for the slowest rank in the step before, the exchange included.
        peak_memory_gib (`float`): The most GPU memory it has used so far, in GiB; 0 on the CPU.
        numbers (`list[float]`): The trainer's own.
    """

    failed: bool
    tokens: float
    wait_seconds: float
    peak_memory_gib: float
    numbers: Sequence[float] = ()


def _rank_row(flat: Sequence[float]) -> RankReport:
    failed, tokens, wait_seconds, peak_memory_gib, *numbers = flat
    return RankReport(bool(failed), tokens, wait_seconds, peak_memory_gib, numbers)


_FIELDS = len(RankReport._fields) - 1
_TOKENS = RankReport._fields.index("tokens")


class StepReduction:
    """One reduction per optimizer step: gradients, if deferred, and one row of numbers from every rank.

    Torch's DDP reduces inside backward. Under Unsloth's reentrant checkpointing its hooks can fire twice, and a rank
    that fails in backward leaves the others waiting. Deferred, DDP's reducer is never armed and this class averages
    all gradients in one flat all-reduce after the last micro-batch.

    Args:
        model (`DistributedDataParallel`):
            The wrapped model.
        deferred (`bool`):
            Whether gradients ride in this reduction. If not, DDP's reducer is in charge of them and only the rows
            are exchanged.
        num_numbers (`int`, *optional*, defaults to 0):
            How many numbers of its own the trainer adds to each rank's row. The same on all ranks.
    """

    def __init__(self, model: DistributedDataParallel, *, deferred: bool, num_numbers: int = 0) -> None:
        self.deferred = deferred
        self._row_size = _FIELDS + num_numbers
        self._group = model.process_group
        self._rank = dist.get_rank(self._group)
        self._world_size = dist.get_world_size(self._group)
        self._device = next(p.device for p in model.parameters() if p.requires_grad)
        self._parameters = [p for p in model.parameters() if p.requires_grad] if deferred else []
        self._sizes = [p.numel() for p in self._parameters]
        self._exchange: _Exchange | None = None
        self._wait_seconds = 0.0
        self._model = model
        if deferred:
            # What DDP's `no_sync()` sets for the time of its block; the second also stops the first forward from
            # broadcasting buffers, which DDP has just done when it was built.
            model.require_backward_grad_sync = False
            model.require_forward_param_sync = False

    def close(self) -> None:
        """Hands the gradients back to DDP's reducer."""
        self._model.require_backward_grad_sync = True
        self._model.require_forward_param_sync = True

    def run(self, tokens: Tensor | float = 0, numbers: Sequence[float] = ()) -> None:
        """Averages the gradients over the ranks and sends this rank's row.

        On a GPU this only enqueues: clipping and the optimizer's step can follow without waiting. What the other
        ranks said is known after [`rows`], which must be called before anything is saved or logged.

        Args:
            tokens (`torch.Tensor` or `float`, *optional*, defaults to 0):
                Tokens this rank computed in this step, a scalar.
            numbers (`Sequence[float]`, *optional*):
                The trainer's own, at most `num_numbers` of them; missing ones are 0.
        """
        self._reduce([p.grad for p in self._parameters], self._make_row(tokens, numbers, failed=False))

    def announce_failure(self) -> None:
        """Joins the step's reduction as a failed rank, so that the others stop at once instead of waiting.

        To be called where the error is handled: its traceback goes with it. Overlapped, the others already wait in
        another collective, and the launcher ends them.
        """
        if self.deferred:
            publish_error(traceback.format_exc())
            self._reduce([None] * len(self._parameters), self._make_row(0, (), failed=True))

    def rows(self) -> list[RankReport]:
        """Waits for the last [`run`] and returns what every rank said, rank by rank.

        Raises:
            PeerError: If another rank announced that it failed.
        """
        assert self._exchange is not None, "rows() before run()"
        flat, self._wait_seconds = self._exchange.wait()
        starts = range(len(self._sizes), len(flat), self._row_size)
        rows = [_rank_row(flat[start : start + self._row_size]) for start in starts]
        failed = [rank for rank, row in enumerate(rows) if row.failed]
        if failed:
            raise PeerError(f"Rank {failed[0]} failed in this optimizer step:\n{fetch_error(failed[0])}")
        return rows

    def _make_row(self, tokens: Tensor | float, numbers: Sequence[float], *, failed: bool) -> Tensor:
        peak = torch.cuda.max_memory_allocated(self._device) / 2**30 if self._device.type == "cuda" else 0.0
        *fields, _ = RankReport(failed, 0.0, self._wait_seconds, peak)
        missing = self._row_size - _FIELDS - len(numbers)
        rows = torch.zeros(self._world_size, self._row_size)
        rows[self._rank] = torch.tensor([*fields, *numbers, *[0.0] * missing])
        rows = rows.to(self._device, non_blocking=True)
        rows[self._rank, _TOKENS] = tokens  # stays on the device, so nothing waits for it
        return rows.reshape(-1)

    def _reduce(self, gradients: Sequence[Tensor | None], rows: Tensor) -> None:
        """`gradients`: one a parameter, `None` where this rank has none. `rows`: `[world_size * row size]`."""
        has_gradient = torch.tensor([g is not None for g in gradients], dtype=torch.float32)
        pieces = [
            p.new_zeros(p.numel()) if g is None else g.reshape(-1)
            for p, g in zip(self._parameters, gradients, strict=True)
        ]
        # `cat` converts piece by piece to the widest type among them, which is float32 at least, that of the rows.
        flat = torch.cat([*pieces, has_gradient.to(self._device, non_blocking=True), rows])
        numel = sum(self._sizes)
        flat[:numel].div_(self._world_size)
        self._exchange = exchange = _Exchange(flat, numel, self._group)
        somewhere = [True] * len(gradients)
        if any(gradient is None for gradient in gradients):
            somewhere = [bool(ranks) for ranks in exchange.wait()[0][: len(gradients)]]
        if self._parameters:
            self._hand_out(flat[:numel], somewhere)

    def _hand_out(self, flat: Tensor, somewhere: Sequence[bool]) -> None:
        """Makes each gradient a view of the flat tensor; one that no rank has stays `None`, as on one GPU."""
        for parameter, piece, keep in zip(self._parameters, flat.split(self._sizes), somewhere, strict=True):
            parameter.grad = piece.view_as(parameter).to(parameter.dtype) if keep else None


class _Exchange:
    """One all-reduce in flight, and the numbers at its end on their way to the host."""

    def __init__(self, flat: Tensor, numel: int, group: dist.ProcessGroup) -> None:
        self._on_gpu = flat.is_cuda
        self._host = torch.empty(flat.numel() - numel, dtype=flat.dtype, pin_memory=self._on_gpu)
        if self._on_gpu:
            self._before, self._after, self._copied = (torch.cuda.Event(enable_timing=True) for _ in range(3))
            self._before.record()
        start = time.perf_counter()
        dist.all_reduce(flat, group=group)
        self._seconds = time.perf_counter() - start
        if self._on_gpu:
            self._after.record()
        self._host.copy_(flat[numel:], non_blocking=True)
        if self._on_gpu:
            self._copied.record()

    def wait(self) -> tuple[list[float], float]:
        """The numbers, and the seconds this rank waited for the slowest one, exchange included."""
        if self._on_gpu:
            self._copied.synchronize()
            self._seconds = self._before.elapsed_time(self._after) / 1000
        return self._host.tolist(), self._seconds
