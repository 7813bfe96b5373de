"""Ends a process that was asked to stop while its main thread is stuck in a collective with a rank that has failed."""

import os
import signal
import sys
import threading

from ..ranks.environment import rank
from ..ranks.store import find_errors


_POLL_SECONDS = 0.5


class StuckWatch:
    """While it is entered, a thread hears of a signal although the main thread does not come to its handler.

    Python runs signal handlers in the main thread, and only between two of its instructions. torch's launcher signals
    the ranks that wait for a failed one, and kills them 30 s later, without a word. If another rank has published
    its error, this process leaves at once; if none has, nothing is done.
    """

    def __init__(self) -> None:
        self._handled = threading.Event()
        self._reader = self._writer = self._before = -1

    def __enter__(self) -> "StuckWatch":
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=self._leave_to_parent)
        threading.Thread(target=self._watch, name="unsloth_accel-stuck-watch", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._before)
        os.close(self._writer)  # ends the thread, which reads until then
        self._writer = -1

    def note_handled(self) -> None:
        """A handler ran: the main thread is not stuck."""
        self._handled.set()

    def _leave_to_parent(self) -> None:
        """A forked process has the same pipe: its signals are not those of this one."""
        if self._writer != -1:
            signal.set_wakeup_fd(-1)

    def _watch(self) -> None:
        while received := os.read(self._reader, 1):
            if received[0] in (signal.SIGTERM, signal.SIGUSR1):
                self._leave_if_others_failed(signal.Signals(received[0]))
        os.close(self._reader)

    def _leave_if_others_failed(self, number: signal.Signals) -> None:
        while not self._handled.wait(_POLL_SECONDS) and self._writer != -1:
            for failed, _ in find_errors():
                sys.stderr.write(
                    f"unsloth_accel: rank {rank()} was asked to stop ({number.name}) while it waits for "
                    f"rank {failed}, which has failed: it leaves at once.\n"
                )
                sys.stderr.flush()
                os._exit(128 + number)
