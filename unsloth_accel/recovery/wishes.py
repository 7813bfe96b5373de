"""What each rank wishes at a point of the training loop, left in the launcher's store for those that want to know."""

import json
import time
from collections.abc import Set
from itertools import count

from ..errors import PeerError
from ..ranks.environment import rank, world_size
from ..ranks.store import connect, find_errors, has_ended


# As long as torch lets a collective of gloo wait.
TIMEOUT_SECONDS = 1800.0
POLL_SECONDS = 0.005

# Made in the same order on all ranks.
_boards = count()


class WishBoard:
    """One key a rank, overwritten at each point, which all ranks pass in the same order.

    To leave wishes is one message to the store that nobody waits for (2 us). To read those of the others is up to the
    rank that has a reason; it waits until each of them has come to this point.
    """

    def __init__(self) -> None:
        self._number = next(_boards)
        self._point = 0

    def leave(self, wishes: Set[str]) -> None:
        """Begins the next point with the wishes of this rank."""
        self._point += 1
        connect().set(self._key(rank()), json.dumps([self._point, sorted(wishes)]))

    def read(self) -> list[set[str]]:
        """Waits for all ranks, and returns what each wished at this point.

        A rank that has passed the point counts as one without wishes: with any it would have waited for this rank.

        Raises:
            PeerError: If a rank failed, ended, or did not come in 30 minutes.
        """
        return [self._read(other) for other in range(world_size())]

    def _read(self, other: int) -> set[str]:
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while True:
            ended = has_ended(other)  # asked first: what it left before its end is there
            point, wishes = self._left_by(other)
            if point >= self._point:
                return set(wishes) if point == self._point else set()
            _raise_if_gone(other, ended, time.monotonic() > deadline)
            time.sleep(POLL_SECONDS)

    def _left_by(self, other: int) -> tuple[int, list[str]]:
        if not connect().check([self._key(other)]):
            return 0, []
        point, wishes = json.loads(connect().get(self._key(other)))
        return point, wishes

    def _key(self, of_rank: int) -> str:
        return f"wishes/{self._number}/{of_rank}"


def _raise_if_gone(other: int, ended: bool, late: bool) -> None:
    for failed, text in find_errors():
        raise PeerError(f"Rank {failed} failed:\n{text}")
    if ended:
        raise PeerError(f"Rank {other} has ended, and did not come to the end of the step.")
    if late:
        raise PeerError(f"Rank {other} did not come to the end of the step within {TIMEOUT_SECONDS:.0f} s.")
