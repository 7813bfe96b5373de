"""A rank that waits for one that died or stalls ends within a stated time, and says for whom it waited, and where."""

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from itertools import count
from types import TracebackType

from ..errors import PeerError
from ..ranks.environment import rank
from ..ranks.run_once import is_at_work
from ..ranks.store import find_errors, publish_error
from .heartbeat import FAILED, LEFT, Heartbeats, Place, Progress
from .signals import STOP_SIGNALS
from .verdict import BEAT_SECONDS, LISTEN_SECONDS, SILENCE_SECONDS, find_left, find_missing, find_silent
from .wakeup import Wakeup


# That of `timeout` of GNU coreutils. Nothing else in a training process ends with it.
STALL_EXIT_CODE = 124
STACK_LINES = 12
# What gloo says where the process at the other end is gone,
# https://github.com/pytorch/gloo/blob/main/gloo/transport/tcp/pair.cc
_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")

_STORE_LOST = (
    "It has lost the store in which the ranks meet. The launcher of the first machine hosts that: it has ended, or "
    "its machine is cut off. Look at the output there."
)

# Made in the same order on all ranks.
_watchdogs = count()


class Watchdog:
    """While it is entered, a thread tells the others where this rank is, and ends the process if they do not come.

    The main thread waits in C++, inside a collective of gloo or for a kernel of NCCL, where no exception reaches it.
    So the thread prints what it knows, flushes, and ends the process with `os._exit`: an exit of the interpreter would
    wait for the main thread, and for the kernel.

    It also listens when a stop signal has come, because torch's launcher signals the ranks that wait for a failed one,
    and kills them 30 s later without a word.

    Args:
        progress ([`Progress`]): What the main thread notes of where it is.
        stall_timeout (`float`): After how many seconds without moving a rank looks for those that do not come.
    """

    def __init__(self, progress: Progress, stall_timeout: float) -> None:
        self._progress, self._stall_timeout = progress, stall_timeout
        self._key = f"train/{next(_watchdogs)}"
        self._heartbeats = Heartbeats(self._key)
        self._now = 0.0
        self._moves, self._moved_at = -1, 0.0
        self._asked: signal.Signals | None = None
        self._looks = 0
        self._leaves_by = LEFT
        self._over = threading.Event()

    def __enter__(self) -> "Watchdog":
        self._watched = threading.get_ident()
        self._wakeup = Wakeup()
        self._thread = threading.Thread(target=self._watch, name="unsloth_accel-watchdog", daemon=True)
        self._thread.start()
        self._store_thread = threading.Thread(
            target=self._watch_store, name="unsloth_accel-watchdog-store", daemon=True
        )
        self._store_thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stops watching.

        Raises:
            PeerError: In place of an error that says that the connection to a rank is lost, with which rank.
        """
        self._leaves_by = FAILED if isinstance(error, Exception) else LEFT
        self._wakeup.close()
        self._thread.join()
        try:
            lost = self._name_lost(error)  # asks the store, which may not answer either
        finally:
            self._over.set()
            self._store_thread.join()  # or it still holds the trainer for a moment
        if lost:
            raise PeerError(lost) from error

    def _name_lost(self, error: BaseException | None) -> str:
        """A rank that fails tells the others why. One that was killed can not, and is known by its silence."""
        if not any(text in str(error) for text in _LOST):
            return ""
        from torch.distributed import DistNetworkError

        try:
            return self._name_silent()
        except DistNetworkError:
            return _STORE_LOST

    def _name_silent(self) -> str:
        heartbeats, began = Heartbeats(self._key), time.monotonic()
        while (now := time.monotonic()) < began + 2 * SILENCE_SECONDS:
            heartbeats.listen(now)
            gone = _published() or find_left(heartbeats.heard) or find_silent(heartbeats.heard, now)
            if gone:
                publish_error(_sentences(gone))
                return _sentences(gone)
            self._looks += 1
            time.sleep(BEAT_SECONDS / 4)
        return ""

    # In the thread

    def _watch(self) -> None:
        from torch.distributed import DistNetworkError

        try:
            self._look()  # at once: a rank that has never been heard of is not missed
            while self._sleeps():
                self._look()
                self._looks += 1
        except DistNetworkError:
            self._watch_alone()
        with suppress(DistNetworkError):
            self._heartbeats.beat(self._progress.place()._replace(doing=self._leaves_by))

    def _watch_alone(self) -> None:
        """The store is gone with the launcher of the first machine, and with it all word of the others."""
        while self._sleeps():
            self._looks += 1
            if self._still(self._place()) >= self._stall_timeout:
                self._leave(_STORE_LOST, STALL_EXIT_CODE)

    def _watch_store(self) -> None:
        """In another thread. No call to a store ends whose machine has lost its power or its network."""
        unanswered, looks = 0.0, self._looks
        while not self._over.wait(BEAT_SECONDS):
            unanswered = unanswered + BEAT_SECONDS if looks == self._looks else 0.0
            looks = self._looks
            if unanswered >= self._stall_timeout:
                self._leave(_STORE_LOST, STALL_EXIT_CODE)

    def _sleeps(self) -> bool:
        """Sleeps until it is time for a heartbeat or a signal comes; whether it goes on after that.

        Time in which this process did not run does not count: a scheduler may suspend the whole job.
        """
        began = time.monotonic()
        received = self._wakeup.sleep(BEAT_SECONDS)
        self._now += min(time.monotonic() - began, 2 * BEAT_SECONDS)
        if received in STOP_SIGNALS:
            self._asked = signal.Signals(received)
        return received is not None

    def _look(self) -> None:
        place = self._place()
        still = self._still(place)
        self._heartbeats.beat(place, self._stack() if still > self._stall_timeout / 2 else "")
        if still >= LISTEN_SECONDS:
            self._heartbeats.listen(self._now)
        if self._asked is not None and still >= SILENCE_SECONDS:
            self._leave_for_failed(128 + self._asked)
            self._leave_for_missing(find_silent(self._heartbeats.heard, self._now), 128 + self._asked)
        if still >= self._stall_timeout:
            if not place.may_last:
                self._leave_for_failed(STALL_EXIT_CODE)
            missing = find_missing(place, self._heartbeats.heard, self._now, self._stall_timeout)
            self._leave_for_missing(missing, STALL_EXIT_CODE)

    def _still(self, place: Place) -> float:
        """For how many seconds the main thread has not moved."""
        if place.moves != self._moves:
            self._moves, self._moved_at = place.moves, self._now
        return self._now - self._moved_at

    def _place(self) -> Place:
        place = self._progress.place()
        return place._replace(doing=f"{place.doing}, in `run_once`", may_last=True) if is_at_work() else place

    def _leave_for_failed(self, code: int) -> None:
        published = _published()
        if published:
            self._leave(_sentences(published), code)

    def _leave_for_missing(self, missing: Mapping[int, str], code: int) -> None:
        if missing:
            publish_error(_sentences(missing))
            self._leave(_sentences(missing) + self._details(missing), code)

    def _leave(self, why: str, code: int) -> None:
        sys.stderr.write(f"unsloth_accel: rank {rank()} leaves with exit code {code}. {why}\n")
        sys.stderr.flush()
        sys.stdout.flush()
        os._exit(code)

    def _details(self, missing: Mapping[int, str]) -> str:
        """Where the ranks are, and what to try; once, by the first rank that is there."""
        heard = self._heartbeats.heard
        if any(other < rank() and other not in missing for other in heard):
            return ""
        stacks = {other: heard[other].beat.stack for other in missing}
        shown = [f"\nWhere rank {other} is:\n{stack}" for other, stack in stacks.items() if stack]
        place = f"\nWhere this rank waits, {self._place()}:\n{self._stack()}"
        return "".join([*shown, place, _advice(self._stall_timeout)])

    def _stack(self) -> str:
        """The end of the main thread's Python stack."""
        frame = sys._current_frames().get(self._watched)
        return "".join(traceback.format_stack(frame)[-STACK_LINES:])


def _published() -> dict[int, str]:
    """What other ranks have said of their own end, by rank."""
    return {other: f"Rank {other} has left:\n{text}" for other, text in find_errors()}


def _sentences(why: Mapping[int, str]) -> str:
    return " ".join(why.values())


def _advice(stall_timeout: float) -> str:
    return (
        "What to try: look at the other rank's own output, and in `dmesg` for the killer of processes that use too "
        "much memory. A rank that is meant to work alone for so long does so under `run_once`, or with a larger "
        f"`stall_timeout` ({stall_timeout:g} s) of UnslothAcceleratorPlugin. Training goes on from the newest "
        'complete checkpoint with `resume="auto"`.'
    )
