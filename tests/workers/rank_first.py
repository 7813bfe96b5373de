"""What `run_once` does on several ranks: python rank_first.py SCENARIO OUT_DIR, started once per rank."""

import json
import os
import signal
import sys
import time
from pathlib import Path

from unsloth_accel.errors import PeerError
from unsloth_accel.ranks import run_once as rank_first
from unsloth_accel.ranks.run_once import run_once


RANK = int(os.environ["RANK"])
WORLD_SIZE = int(os.environ["WORLD_SIZE"])
seen: dict[str, object] = {}


def caught(key, work, **options):
    began = time.monotonic()
    try:
        run_once(work, **options)
    except Exception as error:
        seen[key] = [type(error).__name__, str(error), time.monotonic() - began]


def count(value):
    seen["worked"] = [*seen.get("worked", []), value]
    return value


def fail():
    raise ValueError("no space left")


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def agree():
    """Before and after the process group exists, in both scopes, with work that outlasts the group's timeout."""
    from datetime import timedelta

    import torch.distributed as dist

    seen["before"] = [run_once(lambda i=i: count(f"{i}-from-{RANK}"), name="counting") for i in range(2)]
    dist.init_process_group("gloo", timeout=timedelta(seconds=3))
    seen["after"] = run_once(lambda: count(f"after-from-{RANK}"), name="counting")
    seen["long"] = run_once(lambda: time.sleep(5) or "slept", name="sleeping")
    dist.barrier()
    caught("error", fail, name="saving")
    caught("again", lambda: None, name="saving")
    if RANK == 0:
        seen["alone"] = run_once(lambda: run_once(lambda: "nested", name="nested"), name="guarded")
    os.environ["LOCAL_RANK"] = str(RANK % 2)
    seen["node"] = run_once(lambda: count(f"node-from-{RANK}"), name="counting", scope="node")
    caught("timeout", lambda: time.sleep(3), name="dawdling", timeout=1)
    caught("unpicklable", lambda: lambda: None, name="returning a function")


def killed():
    """The working rank of the second node is killed: its heartbeat stops, whoever hosts the store."""
    rank_first.HEARTBEAT_SECONDS, rank_first.SILENCE_SECONDS = 0.2, 3.0
    rank_first.REPORT_SECONDS = rank_first.LEAVE_SECONDS = 1.0
    run_once(lambda: None, name="starting")
    os.environ["LOCAL_RANK"] = str(RANK % 2)
    if RANK >= 2:
        caught("killed", die, name="tokenising", scope="node")
    deadline = time.monotonic() + 60
    while RANK == 0 and not (out / "killed-3.json").exists() and time.monotonic() < deadline:
        time.sleep(0.1)  # it hosts the store, and the test is about the silence of another rank


def host_killed():
    caught("killed", lambda: time.sleep(1) or die(), name="merging")


def late():
    """Rank 0, which hosts the store, is done at once; the last rank asks three seconds later."""
    run_once(lambda: None, name="starting")
    if RANK == WORLD_SIZE - 1:
        time.sleep(3)
    seen["late"] = run_once(lambda: "done", name="finishing")


scenario, out = sys.argv[1], Path(sys.argv[2])
globals()[scenario]()
(out / f"{scenario}-{RANK}.json").write_text(json.dumps(seen))
if any(
    isinstance(value, list) and value[:1] == [PeerError.__name__] for key, value in seen.items() if key == "killed"
):
    sys.exit(3)
