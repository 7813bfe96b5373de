"""One rank works, the others wait, outside every collective.

Accelerate's `main_process_first` waits inside a collective of the process group: work that outlasts the group's
timeout (a tokenisation, a GGUF export) kills the job, and a first rank that raises leaves the others waiting for ever.
Here the ranks meet through the key-value store that the launcher already runs, so a wait may be long, says whom it
waits for, and ends at once when the working rank fails or dies.
"""

import logging
import pickle
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from ..errors import ConfigurationError, PeerError
from .environment import is_distributed, local_rank, rank
from .store import POLL_SECONDS, connect


if TYPE_CHECKING:
    from torch.distributed import Store

T = TypeVar("T")
Scope = Literal["world", "node"]

HEARTBEAT_SECONDS = 5.0
SILENCE_SECONDS = 30.0
REPORT_SECONDS = 30.0

logger = logging.getLogger(__name__)
_calls: Counter[str] = Counter()
_at_work = threading.local()


def run_once(work: Callable[[], T], *, name: str, scope: Scope = "world", timeout: float = 86400.0) -> T:
    """Runs `work` on one rank and hands its result to the others, which wait outside any collective.

    Every rank of the scope calls this in the same order. The working rank never waits for the others, so a call that
    only it makes (`if rank == 0: ...`) returns, too. With one rank, or inside another `work`, it is a plain call.

    Args:
        work (`Callable[[], T]`): What the working rank does. Its result must be picklable and small.
        name (`str`): What the rank is doing ("merging into outputs"); it appears in logs and errors.
        scope (`"world"` or `"node"`, *optional*, defaults to `"world"`): Whether rank 0 works for all ranks, or the
            first rank of each node for its node.
        timeout (`float`, *optional*, defaults to 86400.0): Seconds after which a waiting rank gives up.

    Returns:
        `T`: What `work` returned, on every rank.

    Raises:
        PeerError: On the waiting ranks, if `work` raised, its rank died or `timeout` passed. The working rank raises
            the error of `work` unchanged.
        ConfigurationError: If `scope` is neither of the two, or the launcher's environment is incomplete.
    """
    if scope not in ("world", "node"):
        raise ConfigurationError(f"`scope` is {scope!r}; allowed are 'world' and 'node'.")
    if not is_distributed() or getattr(_at_work, "busy", False):
        return work()
    own = rank()
    worker = 0 if scope == "world" else own - local_rank()
    sequence = _calls[f"{scope}/{name}"]
    _calls[f"{scope}/{name}"] += 1
    task = _Task(connect(), f"{scope}/{worker}/{name}/{sequence}", name, worker)
    if own == worker:
        return task.do(work)
    result: T = task.wait(timeout, reports=own == worker + 1)
    return result


@dataclass(frozen=True)
class _Task:
    """One call of `run_once`: the keys `<key>/beat` and `<key>/outcome` of the store."""

    store: "Store"
    key: str
    name: str
    worker: int

    def do(self, work: Callable[[], T]) -> T:
        _at_work.busy = True
        try:
            with self._heartbeat():
                result = work()
                outcome = pickle.dumps((result, None))
        except BaseException as error:  # An interrupt, too, must reach those who wait; it is raised again.
            self._publish(pickle.dumps((None, f"{type(error).__name__}: {error}")))
            raise
        finally:
            _at_work.busy = False
        self._publish(outcome)
        return result

    def _publish(self, outcome: bytes) -> None:
        self.store.set(f"{self.key}/outcome", outcome)  # type: ignore[arg-type]  # It takes bytes, its stub does not say.

    @contextmanager
    def _heartbeat(self) -> Iterator[None]:
        """A thread counts up while the work lasts. It dies with the process, however that is killed."""
        finished = threading.Event()

        def beat() -> None:
            while not finished.wait(HEARTBEAT_SECONDS):
                self.store.add(f"{self.key}/beat", 1)

        self.store.add(f"{self.key}/beat", 1)
        thread = threading.Thread(target=beat, name="unsloth_accel-heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            finished.set()
            thread.join()

    def wait(self, timeout: float, reports: bool) -> Any:
        from torch.distributed import DistNetworkError

        try:
            self._watch(timeout, reports)
            result, error = pickle.loads(self.store.get(f"{self.key}/outcome"))
        except DistNetworkError as lost:
            raise PeerError(
                f"Lost the store that the launcher or rank 0 hosts, while rank {self.worker} was {self.name}: {lost}"
            ) from lost
        if error is not None:
            raise PeerError(f"Rank {self.worker} failed while {self.name}. Its error: {error}")
        return result

    def _watch(self, timeout: float, reports: bool) -> None:
        """Returns when there is an outcome. Before the first beat only `timeout` counts: it may be on its way."""
        began = last_beat = last_report = time.monotonic()
        beats = 0
        while not self.store.check([f"{self.key}/outcome"]):
            now = time.monotonic()
            heard = self.store.add(f"{self.key}/beat", 0)
            if heard != beats:
                beats, last_beat = heard, now
            if beats and now - last_beat > SILENCE_SECONDS:
                raise PeerError(
                    f"Rank {self.worker} has been silent for {now - last_beat:.0f} s while {self.name}: "
                    "its process is dead or stopped."
                )
            if now - began > timeout:
                raise PeerError(f"Rank {self.worker} did not finish {self.name} within `timeout` = {timeout:.0f} s.")
            if reports and now - last_report > REPORT_SECONDS:
                last_report = now
                verb = "to finish" if beats else "to begin"
                logger.warning("Waiting for rank %d %s %s, %.0f s so far.", self.worker, verb, self.name, now - began)
            time.sleep(POLL_SECONDS)
