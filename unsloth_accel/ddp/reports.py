"""What the ranks tell each other in each reduction, and what they decide from it."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from .reduction import wait_until


# What every rank does after it has heard the others.
Action: TypeAlias = Callable[[], None]


class RankReport(NamedTuple):
    """What one rank told all others in the reduction of an optimizer step.

    Args:
        failed (`bool`): Whether it failed in this step.
        wait_seconds (`float`): How long it waited for the slowest rank in the step before, the exchange included.
        peak_memory_gib (`float`): The most GPU memory it has used so far, in GiB; 0 on the CPU.
        weights_checksum (`float`): A sum over the bits of what it trains, before this step's update.
        values (`Mapping[str, float]`): What the members of the run reported, by column; 0 for what they left out.
    """

    failed: bool
    wait_seconds: float
    peak_memory_gib: float
    weights_checksum: float
    values: Mapping[str, float]


class StepMember(Protocol):
    """Takes part in the one exchange of each optimizer step.

    Attributes:
        columns (`tuple[str, ...]`): The names of its numbers. Compared over the ranks once, at the start.
    """

    columns: tuple[str, ...]

    def report(self) -> Mapping[str, "float | Tensor"]:
        """This rank's numbers for the step, by column. Local: never collective, and no wait for the device."""
        ...

    def decide(self, ranks: Sequence[RankReport]) -> Action | None:
        """What all ranks now do. From the same reports every rank decides the same."""
        ...


_OWN = RankReport._fields[:-1]


class ReportExchange:
    """One small all-reduce of float64, exact for counts up to 2**53: each rank fills in its own row.

    Before the rows travels one number a trained parameter: how many ranks have a gradient for it.

    Args:
        columns (`Sequence[str]`): The members' columns, in order.
        group (`dist.ProcessGroup`): The ranks.
        device (`torch.device`): Where the ranks exchange tensors.
    """

    def __init__(self, columns: Sequence[str], group: dist.ProcessGroup, device: torch.device) -> None:
        self._columns = list(columns)
        self._group, self._device = group, device
        self._rank, self._world_size = dist.get_rank(group), dist.get_world_size(group)

    def send(self, presence: Sequence[bool], report: RankReport, tensors: Mapping[str, Tensor]) -> "SentReports":
        """Starts the exchange; on a GPU it only enqueues.

        Args:
            presence (`Sequence[bool]`): For each trained parameter whether this rank has a gradient.
            report (`RankReport`): This rank's.
            tensors (`Mapping[str, torch.Tensor]`): Scalars that replace fields or values of `report` by name. They
                stay on their device, so nothing waits for them.
        """
        flat = self._fill(presence, report)
        width = len(_OWN) + len(self._columns)
        row = flat[len(presence) + self._rank * width :][:width]
        names = [*_OWN, *self._columns]
        for name, value in tensors.items():
            row[names.index(name)] = value
        dist.all_reduce(flat, group=self._group)
        return SentReports(flat, len(presence), self._columns)

    def send_failure(self, parameters: int, deadline: float) -> bool:
        """Tells the others that this rank failed; returns whether they came in time."""
        flat = self._fill([False] * parameters, RankReport(True, 0.0, 0.0, 0.0, {}))
        return wait_until(deadline, dist.all_reduce(flat, group=self._group, async_op=True))

    def _fill(self, presence: Sequence[bool], report: RankReport) -> Tensor:
        row = [*map(float, report[:-1]), *(report.values.get(name, 0.0) for name in self._columns)]
        before, after = self._rank, self._world_size - self._rank - 1
        filled = [*map(float, presence), *[0.0] * before * len(row), *row, *[0.0] * after * len(row)]
        flat = torch.tensor(filled, dtype=torch.float64, pin_memory=self._device.type == "cuda")
        return flat.to(self._device, non_blocking=True)


class SentReports:
    """An exchange in flight, and its numbers on their way to the host."""

    def __init__(self, flat: Tensor, parameters: int, columns: Sequence[str]) -> None:
        self._parameters, self._columns = parameters, columns
        on_gpu = flat.is_cuda
        self._host = torch.empty(flat.shape, dtype=flat.dtype, pin_memory=on_gpu)
        self._host.copy_(flat, non_blocking=True)
        self._copied = torch.cuda.Event() if on_gpu else None
        if self._copied is not None:
            self._copied.record()

    def presence(self) -> list[bool]:
        """Waits, and tells for each trained parameter whether any rank has a gradient."""
        return [count > 0 for count in self._arrived()[: self._parameters]]

    def reports(self) -> list[RankReport]:
        """Waits, and returns what every rank said, rank by rank."""
        numbers = self._arrived()[self._parameters :]
        width = len(_OWN) + len(self._columns)
        return [self._report(numbers[start : start + width]) for start in range(0, len(numbers), width)]

    def _report(self, row: Sequence[float]) -> RankReport:
        failed, wait_seconds, peak_memory_gib, checksum, *values = row
        named = dict(zip(self._columns, values, strict=True))
        return RankReport(bool(failed), wait_seconds, peak_memory_gib, checksum, named)

    def _arrived(self) -> list[float]:
        if self._copied is not None:
            self._copied.synchronize()
        numbers: list[float] = self._host.tolist()
        return numbers


class Stopwatch:
    """How long the ranks' exchange takes on this rank's device, without a wait in between."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._started = self._stopped = 0.0
        if self._on_gpu:
            self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]

    def start(self) -> None:
        """Marks the beginning, in the stream's order on a GPU."""
        if self._on_gpu:
            self._events[0].record()
        self._started = time.perf_counter()

    def stop(self) -> None:
        """Marks the end."""
        if self._on_gpu:
            self._events[1].record()
        self._stopped = time.perf_counter()

    def seconds(self) -> float:
        """The time between; on a GPU to be asked when the exchange is known to be complete."""
        if self._on_gpu:
            return float(self._events[0].elapsed_time(self._events[1])) / 1000
        return self._stopped - self._started
