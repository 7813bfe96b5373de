"""The signals that ask a training process to stop: noted, and the process goes on until all ranks stop together."""

import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any


# SIGUSR1 is what `sbatch --signal=USR1@120` sends before the time limit, https://slurm.schedmd.com/sbatch.html
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
# A scheduler that signals every process of a job signals the launcher, too, which then forwards it to the ranks.
SAME_SIGNAL_SECONDS = 5.0


class StopSignals:
    """While it is entered, notes the first stop signal; the second one goes to the handler that was there before.

    A signal that comes again within 5 seconds counts as the same one. Python runs handlers in the main thread only, so
    in another thread nothing is installed and signals do what they did before.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._received_at = 0.0
        self._before: dict[signal.Signals, Any] = {}
        self._process = 0

    def __enter__(self) -> "StopSignals":
        self._process = os.getpid()
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                if signal.getsignal(number) is not None:  # None: installed by native code, could not be put back
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # forked from the rank, as a pool's worker, which is ended by SIGTERM
            self.pass_on(signal.Signals(number))
        elif self.received is None:
            self.received, self._received_at = signal.Signals(number), time.monotonic()
        elif time.monotonic() - self._received_at > SAME_SIGNAL_SECONDS:
            self.pass_on(signal.Signals(number))

    def pass_on(self, number: signal.Signals) -> None:
        """Gives the signal to the handler from before, which is in place from now on."""
        self.__exit__(None, None, None)
        os.kill(os.getpid(), number)
