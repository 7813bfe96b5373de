"""What `run_once` does on several ranks: python run_once.py OUT_DIR SCENARIO [SCENARIO ...], started once per rank."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from start import RANK, WORLD_SIZE, write_result

from unsloth_accel.errors import PeerError
from unsloth_accel.ranks import run_once as ranks_run_once
from unsloth_accel.ranks import store
from unsloth_accel.ranks.run_once import run_once
from unsloth_accel.ranks.store import fetch_error, publish_error


seen: dict[str, Any] = {}


def caught(name: str, work: Callable[[], Any], description: str, **options: Any) -> None:
    try:
        run_once(work, key=name, description=description, **options)
    except Exception as error:
        seen[name] = [type(error).__name__, str(error)]


def count(value: str) -> str:
    seen["worked"] = [*seen.get("worked", []), value]
    return value


def fail() -> NoReturn:
    raise ValueError("no space left")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for(names: list[str]) -> None:
    """Until other ranks have left these files; a minute is a deadline, not what it takes."""
    deadline = time.monotonic() + 60
    while not all((out / name).exists() for name in names):
        if time.monotonic() > deadline:
            raise TimeoutError(f"none of the other ranks wrote {names}")
        time.sleep(0.05)


def agree() -> None:
    """Before and after the process group exists, and in both scopes."""
    import torch.distributed as dist

    seen["before"] = [run_once(lambda i=i: count(f"{i}-from-{RANK}"), key="n", description="counting") for i in (0, 1)]
    dist.init_process_group("gloo")
    seen["after"] = run_once(lambda: count(f"after-from-{RANK}"), key="n", description="counting")
    if RANK != 3:  # a collective would wait for this rank
        seen["without 3"] = run_once(lambda: {"a": [1, None, 0.5]}, key="n", description="counting")
    dist.barrier()
    caught("error", fail, "saving")
    caught("again", lambda: None, "saving")
    if RANK == 0:
        seen["alone"] = run_once(
            lambda: run_once(lambda: "nested", key="n", description="nested"), key="n", description="guarded"
        )
    os.environ["LOCAL_RANK"] = str(RANK % 2)
    seen["node"] = run_once(lambda: count(f"node-from-{RANK}"), key="n", description="counting", scope="node")
    caught("not_json", lambda: {1, 2}, "returning a set")
    caught("timeout", lambda: wait_for([f"late-{rank}" for rank in (1, 2, 3)]), "dawdling", timeout=1)
    (out / f"late-{RANK}").touch()


def save(version: str) -> None:
    run_once(lambda: write(version), key="save", description="saving")


def write(version: str) -> None:
    time.sleep(1)  # long enough for a rank that does not wait to read what was there before
    (out / "weights").write_text(version)


def alone_and_together() -> None:
    """Rank 0 saves alone, later all save, and all read: what a function wrote, and what a line wrote."""
    if RANK == 0:
        save("0, by rank 0 alone")
    save("1, by all")
    seen["function"] = (out / "weights").read_text()
    (out / f"read-{RANK}").touch()
    caught("met", lambda: wait_for([f"read-{rank}" for rank in range(1, WORLD_SIZE)]), "letting all read")
    if RANK == 0:
        run_once(lambda: write("2, by rank 0 alone"), key="save", description="saving")
    for version in ("3, by all", "4, by all"):
        run_once(lambda version=version: write(version), key="save", description="saving")
    seen["line"] = (out / "weights").read_text()


def disagree() -> None:
    """The working rank's work lasts until the others have been told that theirs is another."""
    others = [f"disagree-{rank}.json" for rank in range(1, WORLD_SIZE)]
    caught("stamped", lambda: wait_for(others), f"saving to out-{time.time_ns()}-{RANK}")


def alone_in_some_rounds() -> None:
    for step in range(3):
        if RANK == 0 or step == 2:
            caught("round", lambda: None, f"saving step {step}")


def ended() -> None:
    """Rank 0 makes the call at another line than the others, and is done."""
    if RANK == 0:
        caught("merge", lambda: None, "merging")
    else:
        caught("merge", lambda: None, "merging")


def killed() -> None:
    """The working rank of the second node is killed: its heartbeat stops, whoever hosts the store."""
    ranks_run_once.HEARTBEAT_SECONDS, ranks_run_once.SILENCE_SECONDS = 0.2, 5.0
    ranks_run_once.REPORT_SECONDS = 1.0
    run_once(lambda: None, key="n", description="starting")
    os.environ["LOCAL_RANK"] = str(RANK % 2)
    if RANK >= 2:
        long = ranks_run_once.SILENCE_SECONDS + 1
        seen["long"] = run_once(lambda: time.sleep(long) or "slept", key="n", description="sleeping", scope="node")
        caught("killed", die, "tokenising", scope="node")
        seen["its error"] = fetch_error(2, timeout=1)
    if RANK == 0:
        wait_for(["killed-3.json"])  # it hosts the store, and the test is about the silence of another rank
        store.LEAVE_SECONDS = 0.0


def host_killed() -> None:
    run_once(lambda: None, key="n", description="starting")
    (out / f"connected-{RANK}").touch()
    caught("killed", lambda: wait_for(["connected-1"]) or die(), "merging")
    seen["its error"] = fetch_error(0, timeout=1)


def errors() -> None:
    if RANK == 1:
        publish_error("ValueError: a row too long")
    seen["published"] = fetch_error(1)


def late() -> None:
    """Rank 0, which hosts the store, is done at once; the last rank asks three seconds later."""
    store.LEAVE_SECONDS = 60.0
    run_once(lambda: None, key="n", description="starting")
    if RANK == WORLD_SIZE - 1:
        time.sleep(3)
    seen["late"] = run_once(lambda: "done", key="n", description="finishing")


out, scenarios = Path(sys.argv[1]), sys.argv[2:]
for scenario in scenarios:
    seen = {}
    globals()[scenario]()
    write_result(out / f"{scenario}.half", seen)  # under another name until it is whole: other ranks wait for it
    (out / f"{scenario}.half-{RANK}.json").rename(out / f"{scenario}-{RANK}.json")
if seen.get("killed", [""])[0] == PeerError.__name__:
    sys.exit(3)
