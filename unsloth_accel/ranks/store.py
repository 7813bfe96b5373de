"""The key-value store that the launcher already runs: how ranks tell each other things outside any collective."""

import atexit
import time
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING

from .environment import agent_hosts_store, rank, restart_count, store_address, world_size


if TYPE_CHECKING:
    from torch.distributed import Store

CONNECT_SECONDS = 600.0
ERROR_SECONDS = 10.0
LEAVE_SECONDS = 10.0
FIRST_POLL_SECONDS = 0.001
POLL_SECONDS = 0.2


def publish_error(text: str) -> None:
    """Leaves the text of this rank's error in the store, for [`fetch_error`].

    Args:
        text (`str`): What the other ranks will show.
    """
    connect().set(_error_key(rank()), text)


def withdraw_error() -> None:
    """Takes back what this rank published; to be called when all ranks have gone on to something new."""
    connect().delete_key(_error_key(rank()))


def fetch_error(failed: int, timeout: float = ERROR_SECONDS) -> str:
    """Reads the error that another rank published.

    Args:
        failed (`int`): The rank that failed.
        timeout (`float`, *optional*, defaults to 10.0): How many seconds to wait for its text.

    Returns:
        `str`: Its text, or, where it could not leave one, a sentence that says so.
    """
    from torch.distributed import DistNetworkError, DistStoreError

    try:
        connect().wait([_error_key(failed)], timedelta(seconds=timeout))
        text: bytes = connect().get(_error_key(failed))
    except (
        DistStoreError,
        DistNetworkError,
    ):  # nothing came in time; or the store is gone, with the rank that hosts it
        return (
            f"(rank {failed} left no error within {timeout:.0f} s: it was killed or is cut off. See its own output.)"
        )
    return text.decode()


def find_errors() -> list[tuple[int, str]]:
    """The errors that other ranks have published so far, each with its rank. Does not wait."""
    others = (other for other in range(world_size()) if other != rank())
    return [(other, fetch_error(other)) for other in others if connect().check([_error_key(other)])]


def pause(waited: float) -> None:
    """Sleeps until the store is to be asked again.

    A question takes 0.1 ms, and ranks that come together are to go on together: a save has four such waits. So not
    longer than a twentieth of the wait: what took 0.1 s is not waited for 0.3 s.

    Args:
        waited (`float`): Seconds so far.
    """
    time.sleep(min(POLL_SECONDS, FIRST_POLL_SECONDS + waited / 20))


def has_ended(other: int) -> bool:
    """Whether the process of rank `other` has come to its end. One that was killed never tells."""
    return connect().check([_end_key(other)])


@cache
def connect() -> "Store":
    """What these ranks share. An agent's store outlives them, so those of the next attempt begin with an empty one."""
    from torch.distributed import PrefixStore

    store = PrefixStore(f"unsloth_accel/{restart_count()}", _server())
    atexit.register(_publish_end, store)
    return store


def connect_to_job() -> "Store":
    """What outlives a restart of the ranks, where an agent hosts the store."""
    from torch.distributed import PrefixStore

    return PrefixStore("unsloth_accel/job", _server())


@cache
def _server() -> "Store":
    """Connects to the store at MASTER_ADDR:MASTER_PORT, which the launcher's agent or else rank 0 hosts.

    `multi_tenant` shares one server per process and port, so this works before and after `init_process_group`.
    """
    from torch.distributed import TCPStore

    host, port = store_address()
    return TCPStore(
        host,
        port,
        is_master=_hosts_store(),
        timeout=timedelta(seconds=CONNECT_SECONDS),
        wait_for_workers=False,
        multi_tenant=True,
    )


def _hosts_store() -> bool:
    return not agent_hosts_store() and rank() == 0


def _publish_end(store: "Store") -> None:
    """Tells that this rank has ended. A rank that hosts the store stays until the others, which may read, have too."""
    from torch.distributed import DistNetworkError

    try:
        store.set(_end_key(rank()), "")
        ranks = [_end_key(other) for other in range(world_size())]
        deadline = time.monotonic() + LEAVE_SECONDS
        while _hosts_store() and not store.check(ranks) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
    except DistNetworkError:
        return  # The store is gone before this rank, and with it all who could read this.


def _error_key(of_rank: int) -> str:
    return f"error/{of_rank}"


def _end_key(of_rank: int) -> str:
    return f"ended/{of_rank}"
