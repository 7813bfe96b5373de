"""Lets a thread hear of a signal while the main thread is stuck and does not come to its handler."""

import os
import select
import signal
import threading
from functools import cache
from weakref import WeakSet


# No signal has this number.
_CLOSED = 0

_open: "WeakSet[Wakeup]" = WeakSet()


class Wakeup:
    """A thread's sleep, which signals to the process end early.

    Python runs handlers in the main thread, and only between two of its instructions; but it writes each signal that
    has a handler to a file descriptor at once. Outside the main thread none can be set, and signals wake nobody.
    """

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._is_set = threading.current_thread() is threading.main_thread()
        if self._is_set:
            self._before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
            _register_at_fork()
            _open.add(self)

    def close(self) -> None:
        """Ends the sleep for good.

        The end of the pipe would not say so, as long as a forked process, such as a data loader's, holds it open.
        """
        if self._is_set:
            signal.set_wakeup_fd(self._before)
            _open.discard(self)
        os.write(self._writer, bytes([_CLOSED]))
        os.close(self._writer)

    def sleep(self, seconds: float) -> int | None:
        """Sleeps until a signal comes.

        Returns:
            `int`, *optional*: Its number; 0 if none came in that time, None after `close`.
        """
        if not select.select([self._reader], [], [], seconds)[0]:
            return 0
        received = os.read(self._reader, 1)[0]
        if received != _CLOSED:
            return received
        os.close(self._reader)
        return None


@cache
def _register_at_fork() -> None:
    """Once a process, as what is registered can not be taken back."""
    os.register_at_fork(after_in_child=_leave_to_parent)


def _leave_to_parent() -> None:
    """A forked process has the same pipe: its signals are not those of this one."""
    if _open:
        signal.set_wakeup_fd(-1)
