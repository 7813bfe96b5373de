"""Ends a process that was asked to stop while its main thread is stuck, in a collective whose other ranks are gone."""

import os
import signal
import sys
import threading
import time

from ..ranks.environment import rank
from ..ranks.store import find_errors


# Python runs signal handlers in the main thread, and only between two of its instructions. torch's launcher kills what
# is still there 30 s after SIGTERM, without a word.
STUCK_SECONDS = 20.0
_POLL_SECONDS = 0.5


class StuckWatch:
    """While it is entered, a thread hears of each signal at once, and ends the process if no handler runs.

    It waits 20 seconds for the handler, or until another rank is known to have failed.
    """

    def __init__(self) -> None:
        self._handled = threading.Event()
        self._reader = self._writer = self._before = -1

    def __enter__(self) -> "StuckWatch":
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, name="unsloth_accel-stuck-watch", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._before)
        os.close(self._writer)  # ends the thread, which reads until then

    def note_handled(self) -> None:
        """A handler ran: the main thread is not stuck."""
        self._handled.set()

    def _watch(self) -> None:
        while received := os.read(self._reader, 1):
            if received[0] in (signal.SIGTERM, signal.SIGUSR1):
                self._wait_for_handler(received[0])
        os.close(self._reader)

    def _wait_for_handler(self, number: int) -> None:
        deadline = time.monotonic() + STUCK_SECONDS
        while not self._handled.wait(_POLL_SECONDS):
            if time.monotonic() > deadline or find_errors():
                sys.stderr.write(
                    f"unsloth_accel: rank {rank()} was asked to stop ({signal.Signals(number).name}) while it waits "
                    "in a call that does not end, as in a collective of ranks that are gone: it leaves at once.\n"
                )
                sys.stderr.flush()
                os._exit(128 + number)
