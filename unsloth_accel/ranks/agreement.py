"""Lets every rank see what all ranks hold, outside any collective, so that a rank that does not come is named."""

import json
import time
from typing import Any

from ..errors import PeerError
from .environment import rank, world_size
from .store import connect, has_ended, pause


# A rank that is this late is doing something else.
TIMEOUT_SECONDS = 120.0


def gather_values(key: str, mine: Any, timeout: float = TIMEOUT_SECONDS) -> list[Any]:
    """Publishes this rank's value and waits for those of the others.

    Args:
        key (`str`): What the value is about; the same on all ranks, and used once.
        mine (`Any`): What JSON can hold.
        timeout (`float`, *optional*, defaults to 120.0): Seconds to wait for each rank.

    Returns:
        `list`: The values, rank by rank.

    Raises:
        PeerError: If a rank has not published its value in time; it is named.
    """
    publish_value(key, mine)
    return collect_values(key, timeout)


def publish_value(key: str, mine: Any) -> None:
    """Publishes this rank's value, for a rank that collects those of all."""
    connect().set(_name(key, rank()), json.dumps(mine))


def collect_values(key: str, timeout: float = TIMEOUT_SECONDS) -> list[Any]:
    """Waits for the values that all ranks publish; arguments, result and error as of [`gather_values`]."""
    return [json.loads(_wait_for(key, other, timeout)) for other in range(world_size())]


def _wait_for(key: str, other: int, timeout: float) -> bytes:
    """Polls: the store's own `wait` holds the connection, and with it the heartbeat of `run_once`."""
    store, since = connect(), time.monotonic()
    while not store.check([_name(key, other)]):
        if has_ended(other) and not store.check([_name(key, other)]):
            raise PeerError(f"Rank {other} ended without coming to {key!r}.")
        waited = time.monotonic() - since
        if waited > timeout:
            raise PeerError(f"Rank {other} did not come to {key!r} within {timeout:.0f} s.")
        pause(waited)
    value: bytes = store.get(_name(key, other))
    return value


def _name(key: str, of_rank: int) -> str:
    return f"gather/{key}/{of_rank}"
