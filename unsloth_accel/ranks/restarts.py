"""Ends at once what the launcher restarts although that cannot help, `accelerate launch --max_restarts`.

The launcher starts all ranks anew after any failure, and its ranks have no way to say that it should not. So a process
that ends with an error no restart mends leaves it in the store, which outlives the ranks, and the next attempt raises
it before it loads anything.
"""

import atexit
import errno
import os
import sys
from functools import cache

from ..errors import ConfigurationError, VersionError
from .environment import agent_hosts_store, max_restarts, rank, restart_count
from .store import connect_to_job


_KEY = "no_restart_helps"
_FULL = (errno.ENOSPC, errno.EDQUOT)
# Of errors that carry no number: safetensors' where the disk is full, and that of a planned step.
_TEXTS = (os.strerror(errno.ENOSPC), "does not fit into memory by itself")


def begin_attempt() -> None:
    """To be called before anything slow.

    Raises:
        ConfigurationError: If an attempt before this one ended with an error that a restart does not mend.
    """
    if max_restarts() == 0 or not agent_hosts_store():
        return
    _tell_at_exit()
    if restart_count() > 0 and connect_to_job().check([_KEY]):
        before = connect_to_job().get(_KEY).decode()
        raise ConfigurationError(f"No restart mends what ended this run, so it ends at once. {before}")


def may_get_better(error: BaseException) -> bool:
    """Whether a restart could mend what led to `error`: neither a wrong argument, a full disk nor too large a row."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ConfigurationError | VersionError):
            return False
        if isinstance(cause, OSError) and cause.errno in _FULL:
            return False
        if any(text in str(cause) for text in _TEXTS):
            return False
        cause = cause.__cause__ or cause.__context__
    return True


@cache
def _tell_at_exit() -> None:
    """Once a process. Exit functions run after Python has shown, and kept, an error that nobody caught."""
    atexit.register(_tell_next_attempt)


def _tell_next_attempt() -> None:
    from torch.distributed import DistNetworkError

    error = getattr(sys, "last_value", None)  # `last_exc` is new in Python 3.12
    if error is None or may_get_better(error):
        return
    try:
        if not connect_to_job().check([_KEY]):  # else it is that of an attempt before
            connect_to_job().set(_KEY, f"Rank {rank()} ended with {type(error).__name__}: {error}")
    except DistNetworkError:
        return  # The launcher is gone, and restarts nobody.
