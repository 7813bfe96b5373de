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
    """What the ranks wish at points that all of them pass in the same order.

    To leave wishes is a message to the store that nobody waits for (2 us). To read those of the others is up to the
    rank that has a reason; it waits until each of them has come to this point.
    """

    def __init__(self) -> None:
        self._number = next(_boards)
        self._point = 0

    def leave(self, wishes: Set[str]) -> None:
        """Begins the next point with the wishes of this rank."""
        self._point += 1
        if wishes:  # rare, so a key for each is no burden for the store
            connect().set(f"{self._key(rank())}/{self._point}", json.dumps(sorted(wishes)))
        connect().set(self._key(rank()), str(self._point))

    def read(self) -> list[set[str]]:
        """Waits for all ranks, and returns what each wished at this point.

        Raises:
            PeerError: If a rank failed, ended, or did not come in 30 minutes.
        """
        return [self._read(other) for other in range(world_size())]

    def _read(self, other: int) -> set[str]:
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not self._has_come(other):
            _raise_if_gone(other, time.monotonic() > deadline)
            time.sleep(POLL_SECONDS)
        wishes = f"{self._key(other)}/{self._point}"
        return set(json.loads(connect().get(wishes))) if connect().check([wishes]) else set()

    def _has_come(self, other: int) -> bool:
        key = self._key(other)
        return connect().check([key]) and int(connect().get(key)) >= self._point

    def _key(self, of_rank: int) -> str:
        return f"wishes/{self._number}/{of_rank}"


def _raise_if_gone(other: int, late: bool) -> None:
    for failed, text in find_errors():
        raise PeerError(f"Rank {failed} failed:\n{text}")
    if has_ended(other):
        raise PeerError(f"Rank {other} has ended, and did not come to the end of the step.")
    if late:
        raise PeerError(f"Rank {other} did not come to the end of the step within {TIMEOUT_SECONDS:.0f} s.")
