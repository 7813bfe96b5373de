"""The rows of each optimizer step, as the sampler draws them, dealt to the ranks by cost.

Accelerate's `BatchSamplerShard` gives every rank each W-th batch of one batch sampler. A sampler inside it whose batch
`s * W + r` is slot `s` of rank `r` decides what each rank gets, and needs no communication, because every rank
draws the same rows and plans the same.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from torch.utils.data import BatchSampler, Sampler

from ..errors import ConfigurationError
from .assignment import assign_rows
from .cost import RowCost
from .lengths import RowLengths


class BalancedBatchSampler(Sampler[list[int]]):
    """Batches of different numbers of rows, for a `BatchSamplerShard` to deal.

    Each full step has the rows it would have on one rank. The last step of an epoch has what is left, none of it
    twice; with fewer rows than ranks, some ranks get an empty batch ([`FillEmptyBatches`]).

    Not a `torch.utils.data.BatchSampler`: that is what others, Unsloth's token balance among them, look for to
    reorder its rows.

    Args:
        batch_sampler (`torch.utils.data.BatchSampler`):
            The sampler that is replaced. Its sampler draws the rows, its batch size and `drop_last` hold.
        lengths (`RowLengths`):
            The tokens of every row of the data set.
        cost (`RowCost`):
            What rows cost.
        ranks (`int`):
            The number of ranks.
        accumulation (`int`):
            The micro-batches of a rank in an optimizer step, as the user asked for them.
        slots (`int`, *optional*, defaults to `accumulation`):
            The batches that a rank gets for an optimizer step, from 1, all its rows in one, to `accumulation`.

    Raises:
        ConfigurationError: If `slots` is out of range.
    """

    # What BatchSamplerShard reads: None lets batches differ in rows, and the number of batches is always a multiple
    # of the ranks, so it has nothing to repeat at the end of an epoch.
    batch_size = None
    drop_last = True

    def __init__(
        self,
        batch_sampler: BatchSampler,
        lengths: RowLengths,
        cost: RowCost,
        ranks: int,
        accumulation: int,
        slots: int | None = None,
    ) -> None:
        if slots is not None and not 1 <= slots <= accumulation:
            raise ConfigurationError(
                f"`slots` must be from 1 to `accumulation`, which is {accumulation}, got {slots}."
            )
        self._batch_sampler = batch_sampler
        self._lengths = lengths
        self._cost = cost
        self._ranks = ranks
        self._accumulation = accumulation
        self._slots = accumulation if slots is None else slots

    @property
    def sampler(self) -> Any:
        """What draws the rows. Accelerate sets it to one that it can seed, and sets the epoch on it."""
        return self._batch_sampler.sampler

    @sampler.setter
    def sampler(self, sampler: Any) -> None:
        self._batch_sampler.sampler = sampler

    @property
    def has_empty_batches(self) -> bool:
        """Whether the last step of an epoch has fewer rows than there are ranks."""
        return 0 < self._rows_of_steps()[1] < self._ranks

    def __len__(self) -> int:
        full_steps, left = self._rows_of_steps()
        return self._ranks * (full_steps * self._slots + (self._shape_of_step(left)[1] if left else 0))

    def __iter__(self) -> Iterator[list[int]]:
        rows = iter(self.sampler)
        full_steps, left = self._rows_of_steps()
        for count in [self._rows_of_full_step] * full_steps + [left] * (left > 0):
            yield from self._batches(list(islice(rows, count)))

    def _batches(self, rows: list[int]) -> Iterator[list[int]]:
        micro_batches, slots = self._shape_of_step(len(rows))
        plan = assign_rows(self._lengths[rows], self._cost, self._ranks, micro_batches, slots)
        for slot in zip(*plan, strict=True):
            for positions in slot:
                yield [rows[position] for position in positions]

    @property
    def _rows_of_round(self) -> int:
        return self._ranks * int(self._batch_sampler.batch_size)

    @property
    def _rows_of_full_step(self) -> int:
        return self._rows_of_round * self._accumulation

    def _rows_of_steps(self) -> tuple[int, int]:
        """How many full steps an epoch has, and the rows of the one after them."""
        full_steps, left = divmod(len(self.sampler), self._rows_of_full_step)
        if self._batch_sampler.drop_last:
            left -= left % self._rows_of_round
        return full_steps, left

    def _shape_of_step(self, rows: int) -> tuple[int, int]:
        """The micro-batches of a rank in a step of so many rows, as asked for and as planned."""
        micro_batches = -(-rows // self._rows_of_round)
        return micro_batches, max(1, min(self._slots, micro_batches, rows // self._ranks))
