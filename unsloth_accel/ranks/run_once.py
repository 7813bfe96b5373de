"""One rank works, the others wait, outside every collective.

Accelerate's `main_process_first` waits inside a collective of the process group: work that outlasts the group's
timeout (a tokenisation, a GGUF export) kills the job, and a first rank that raises leaves the others waiting for ever.
Here the ranks meet through the key-value store that the launcher already runs, so a wait may be long, says whom it
waits for, and ends at once when the working rank fails or dies.

Which call waits for which: the working rank waits for nobody, so it may make calls that the others do not make
(`if rank == 0: trainer.save_model(folder)`), and counting calls would pair those with a later one of another rank.
So calls are counted for each key and each place in the user's code. On all ranks the same lines lead to a call that
they make together, and other lines to one that rank 0 makes alone.
"""

import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from ..errors import ConfigurationError, PeerError
from .call_site import call_site
from .environment import is_distributed, local_rank, rank
from .store import connect, has_ended, pause


if TYPE_CHECKING:
    from torch.distributed import Store

T = TypeVar("T")
Scope = Literal["world", "node"]

HEARTBEAT_SECONDS = 5.0
SILENCE_SECONDS = 30.0
REPORT_SECONDS = 30.0

logger = logging.getLogger(__name__)
_calls: Counter[str] = Counter()
# The threads that work for other ranks now.
_at_work: set[int] = set()


def run_once(
    work: Callable[[], T], *, key: str, description: str, scope: Scope = "world", timeout: float = 86400.0
) -> T:
    """Runs `work` on one rank and hands its result to the others, which wait outside any collective.

    The ranks of the scope make the call at the same line of the user's code, and there equally often. The working rank
    never waits for the others, so a call that only it makes, at a line of its own, returns, too. With one rank, or
    inside another `work`, it is a plain call.

    Args:
        work (`Callable[[], T]`): What the working rank does. JSON must be able to hold its result: the store asks
            nobody who they are, so nothing that runs code when it is read goes through it. Tuples arrive as lists.
        key (`str`): What kind of call it is ("save_model"); the same on all ranks, and for each such call.
        description (`str`): What the rank is doing ("saving to outputs"), for logs and errors. Ranks that make one
            call with different descriptions do not agree on what they do, and are told so.
        scope (`"world"` or `"node"`, *optional*, defaults to `"world"`): Whether rank 0 works for all ranks, or the
            first rank of each node for its node.
        timeout (`float`, *optional*, defaults to 86400.0): Seconds after which a waiting rank gives up.

    Returns:
        `T`: What `work` returned, on every rank.

    Raises:
        PeerError: On the waiting ranks, if `work` raised, its rank died, ended without making this call, or `timeout`
            passed. The working rank raises the error of `work` unchanged.
        ConfigurationError: If `scope` is neither of the two, the launcher's environment is incomplete, or, on the
            waiting ranks, the working rank describes the call in another way.
        TypeError: On the working rank, if JSON cannot hold what `work` returned.
    """
    if scope not in ("world", "node"):
        raise ConfigurationError(f"`scope` is {scope!r}; allowed are 'world' and 'node'.")
    if not is_distributed() or threading.get_ident() in _at_work:
        return work()
    own = rank()
    call = _this_call(key, description, worker=0 if scope == "world" else own - local_rank(), scope=scope)
    if own == call.worker:
        return _work(call, work)
    result: T = _Wait(call, timeout, time.monotonic(), reports=own == call.worker + 1).result()
    return result


def is_at_work() -> bool:
    """Whether this process does something now for which others may wait as long as it takes."""
    return bool(_at_work)


@dataclass(frozen=True)
class _Call:
    """One call, as its ranks know it. Its keys in the store are below `path`; `kind` is shared with like calls."""

    store: "Store"
    worker: int
    key: str
    kind: str
    path: str
    description: str
    site: str

    @property
    def name(self) -> str:
        return f"{self.description} ({self.site})"


def _this_call(key: str, description: str, worker: int, scope: Scope) -> _Call:
    site = call_site()
    kind = f"{scope}/{worker}/{key}"
    number = _calls[f"{kind}/{site}"]
    _calls[f"{kind}/{site}"] += 1
    return _Call(connect(), worker, key, kind, f"{kind}/{site}/{number}", description, site)


def _work(call: _Call, work: Callable[[], T]) -> T:
    _at_work.add(threading.get_ident())
    try:
        with _heartbeat(call):
            result = work()
            outcome = _as_json(call, result)
    except BaseException as error:  # An interrupt, too, must reach those who wait; it is raised again.
        call.store.set(f"{call.path}/outcome", json.dumps({"error": f"{type(error).__name__}: {error}"}))
        raise
    finally:
        _at_work.discard(threading.get_ident())
    call.store.set(f"{call.path}/outcome", outcome)
    return result


def _as_json(call: _Call, result: Any) -> str:
    try:
        return json.dumps({"result": result})
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"What `work` returns goes to the other ranks as JSON, which cannot hold {type(result).__name__} "
            f"({error}; `key` is {call.key!r}). Return None, numbers, strings, and lists "
            "and dicts of them, or write a file and return its path."
        ) from error


@contextmanager
def _heartbeat(call: _Call) -> Iterator[None]:
    """Says that the work has begun. Then a thread counts up; it dies with the process, however that is killed."""
    finished = threading.Event()

    def beat() -> None:
        while not finished.wait(HEARTBEAT_SECONDS):
            call.store.add(f"{call.path}/beat", 1)

    call.store.set(f"{call.kind}/latest", call.name)
    call.store.set(f"{call.path}/begun", call.description)
    thread = threading.Thread(target=beat, name="unsloth_accel-heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()


@dataclass(frozen=True)
class _Wait:
    """How a rank waits for the working one: until it has begun, then until it has finished."""

    call: _Call
    timeout: float
    since: float
    reports: bool

    def result(self) -> Any:
        from torch.distributed import DistNetworkError

        try:
            self._until_begun()
            self._until_finished()
            outcome = json.loads(self.call.store.get(f"{self.call.path}/outcome"))
        except DistNetworkError as lost:
            raise PeerError(
                f"Lost the store that the launcher or rank 0 hosts, while rank {self.call.worker} was "
                f"{self.call.name}: {lost}"
            ) from lost
        if "error" in outcome:
            raise PeerError(f"Rank {self.call.worker} failed while {self.call.name}. Its error: {outcome['error']}")
        return outcome["result"]

    def _until_begun(self) -> None:
        for _ in self._polls("begun", "begin"):
            if has_ended(self.call.worker) and not self._is_there("begun"):
                raise PeerError(
                    f"Rank {self.call.worker} ended without {self.call.name}.{self._latest()} "
                    "All ranks must make this call, and make it at the same line."
                )
        theirs = self.call.store.get(f"{self.call.path}/begun").decode()
        if theirs != self.call.description:
            raise ConfigurationError(
                f"The ranks do not agree on one call, at {self.call.site}. Rank {self.call.worker}: {theirs}. Rank "
                f"{rank()}: {self.call.description}. Let one rank choose what differs, such as a time stamp in "
                f"`output_dir`, and send it to the others with `accelerate.utils.broadcast_object_list`. A call that "
                f"rank {self.call.worker} makes alone needs a line of its own."
            )

    def _until_finished(self) -> None:
        beats, last_beat = 0, time.monotonic()
        for now in self._polls("outcome", "finish"):
            heard = self.call.store.add(f"{self.call.path}/beat", 0)
            if heard != beats:
                beats, last_beat = heard, now
            if now - last_beat > SILENCE_SECONDS:
                raise PeerError(
                    f"Rank {self.call.worker} has been silent for {now - last_beat:.0f} s while {self.call.name}: "
                    "its process is dead or stopped."
                )

    def _polls(self, awaited: str, verb: str) -> Iterator[float]:
        """Yields the time until the working rank has set `awaited`, and says now and then whom this rank waits for."""
        last_report = time.monotonic()
        while not self._is_there(awaited):
            now = time.monotonic()
            if now - self.since > self.timeout:
                raise PeerError(
                    f"Rank {self.call.worker} did not {verb} {self.call.name} within `timeout` = {self.timeout:.0f} s."
                    f"{self._latest()}"
                )
            if self.reports and now - last_report > REPORT_SECONDS:
                last_report = now
                waited = now - self.since
                whom = f"Waiting for rank {self.call.worker} to {verb} {self.call.name}, {waited:.0f} s so far."
                logger.warning("%s%s", whom, self._latest())
            yield now
            pause(now - self.since)

    def _is_there(self, name: str) -> bool:
        return self.call.store.check([f"{self.call.path}/{name}"])

    def _latest(self) -> str:
        """What the working rank last did of this kind, where it is something else: it may have come by other lines."""
        if not self.call.store.check([f"{self.call.kind}/latest"]):
            return ""
        latest = self.call.store.get(f"{self.call.kind}/latest").decode()
        return "" if latest == self.call.name else f" Its last call of this kind: {latest}."
