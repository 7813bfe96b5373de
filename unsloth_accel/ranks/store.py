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
LEAVE_SECONDS = 10.0
POLL_SECONDS = 0.2


def publish_error(text: str) -> None:
    """Leaves the text of this rank's error in the store, for [`fetch_error`]."""
    connect().set(f"error/{rank()}", text)


def fetch_error(failed: int) -> str:
    """The error that rank `failed` published. Waits as long as a store waits: call it when it is known to be there."""
    text: bytes = connect().get(f"error/{failed}")
    return text.decode()


@cache
def connect() -> "Store":
    """Connects to the store at MASTER_ADDR:MASTER_PORT, which the launcher's agent or else rank 0 hosts.

    `multi_tenant` shares one server per process and port, so this works before and after `init_process_group`.
    """
    from torch.distributed import PrefixStore, TCPStore

    host, port = store_address()
    server = TCPStore(
        host,
        port,
        is_master=not agent_hosts_store() and rank() == 0,
        timeout=timedelta(seconds=CONNECT_SECONDS),
        wait_for_workers=False,
        multi_tenant=True,
    )
    # An agent's store outlives a restart of the ranks, and so would the answers of the attempt that failed.
    store = PrefixStore(f"unsloth_accel/{restart_count()}", server)
    if not agent_hosts_store():
        atexit.register(_leave, store)
    return store


def _leave(store: "Store") -> None:
    """Keeps rank 0, which hosts the store, alive until the ranks that may still read from it have left."""
    left = store.add("left", 1)
    deadline = time.monotonic() + LEAVE_SECONDS
    while rank() == 0 and left < world_size() and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        left = store.add("left", 0)
