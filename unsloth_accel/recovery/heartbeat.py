"""Where each rank is in its training, told to the others by a heartbeat through the launcher's store."""

import json
from collections.abc import Callable
from typing import NamedTuple

from ..ranks.environment import rank, world_size
from ..ranks.store import connect


LEFT = "has left train()"
# It tells why itself, or is still asking which rank it has lost.
FAILED = "has left train() with an error"


class Place(NamedTuple):
    """Where the main thread of a rank is.

    Args:
        position (`int`): How many points it has passed that all ranks pass in the same order.
        moves (`int`): Grows with every sign of life, micro-batches among them.
        step (`int`): The optimizer step, from 1.
        doing (`str`): What it does there.
        may_last (`bool`): Whether that may take as long as it likes: a save, an evaluation.
    """

    position: int
    moves: int
    step: int
    doing: str
    may_last: bool

    @property
    def has_left(self) -> bool:
        return self.doing in (LEFT, FAILED)

    def __str__(self) -> str:
        return f"step {self.step}, {self.doing}"


class Progress:
    """What the trainer notes of where it is. To note something costs a microsecond and tells nobody.

    Args:
        reductions (`Callable[[], int]`): How many reductions this rank has begun, which are passed in order, too.
    """

    def __init__(self, reductions: Callable[[], int]) -> None:
        self._reductions = reductions
        self._entered, self._moves = 0, 0
        self._reduced_before, self._step = 0, 0
        self._doing, self._may_last = "starting", True

    def enter(self, doing: str, step: int, *, may_last: bool = False) -> None:
        """The rank comes to a point that all ranks come to, as often and in the same order."""
        self._reduced_before, self._step = self._reductions(), step
        self._doing, self._may_last = doing, may_last
        self._entered += 1

    def move(self) -> None:
        """The rank is getting on, though not to another point."""
        self._moves += 1

    def place(self) -> Place:
        """Where the rank is now; asked by another thread."""
        reductions = self._reductions()
        doing = self._doing
        if reductions > self._reduced_before:
            doing = "averaging the gradients, or in the optimizer step after that"
        position = self._entered + reductions
        return Place(position, position + self._moves, self._step, doing, self._may_last)


class Beat(NamedTuple):
    """One heartbeat: its number, where the rank is, and its stack where it has been there for long."""

    number: int
    place: Place
    stack: str = ""


class Heard(NamedTuple):
    """The last heartbeat of another rank, and when it was the first one that was new, and from a new place."""

    beat: Beat
    beat_at: float
    moved_at: float


class Heartbeats:
    """The heartbeats of all ranks. No two clocks are compared: each rank times what changes by its own.

    Args:
        key (`str`): The same on all ranks, and used once.
    """

    def __init__(self, key: str) -> None:
        self._key, self._beats = key, 0
        self.heard: dict[int, Heard] = {}

    def beat(self, place: Place, stack: str = "") -> None:
        """Tells the others: one message to the store."""
        self._beats += 1
        connect().set(self._of(rank()), json.dumps([self._beats, place, stack]))

    def listen(self, now: float) -> None:
        """Takes in what the others have told. One that has told nothing yet is not in `heard`."""
        for other in range(world_size()):
            if other != rank() and connect().check([self._of(other)]):
                number, place, stack = json.loads(connect().get(self._of(other)))
                self._take(other, Beat(number, Place(*place), stack), now)

    def _take(self, other: int, beat: Beat, now: float) -> None:
        before = self.heard.get(other)
        if before is None:
            self.heard[other] = Heard(beat, now, now)
        elif beat.number != before.beat.number:
            has_moved = beat.place.moves != before.beat.place.moves
            self.heard[other] = Heard(beat, now, now if has_moved else before.moved_at)

    def _of(self, of_rank: int) -> str:
        return f"heartbeat/{self._key}/{of_rank}"
