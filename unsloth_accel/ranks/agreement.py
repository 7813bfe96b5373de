"""Lets every rank see what all ranks hold, outside any collective, so that a rank that does not come is named."""

import json
from datetime import timedelta
from typing import Any

from ..errors import PeerError
from .environment import rank, world_size
from .store import connect


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
    from torch.distributed import DistStoreError

    store = connect()
    store.set(f"gather/{key}/{rank()}", json.dumps(mine))
    values = []
    for other in range(world_size()):
        name = f"gather/{key}/{other}"
        try:
            store.wait([name], timedelta(seconds=timeout))
        except DistStoreError as late:
            raise PeerError(f"Rank {other} did not come to {key!r} within {timeout:.0f} s.") from late
        values.append(json.loads(store.get(name)))
    return values
