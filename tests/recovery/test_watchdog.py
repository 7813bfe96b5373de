"""A rank that waits for one that died, is stopped or loops ends within the stated time, and says which and where."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from signal import SIGKILL, SIGTERM
from subprocess import PIPE

import pytest

from harness import ROOT, free_port, launch, rank_results
from unsloth_accel.recovery.watchdog import STALL_EXIT_CODE


WORKER = ROOT / "tests" / "workers" / "watchdog.py"

# A wait in C++ that no signal interrupts, as that in a collective. Rank 1 has failed, beats once, or lives.
STUCK = """
import datetime, os, sys, threading, time
from torch.distributed import TCPStore
from unsloth_accel.ranks.store import connect
from unsloth_accel.recovery.heartbeat import Progress
from unsloth_accel.recovery.watchdog import Watchdog
from unsloth_accel.recovery.signals import StopSignals
def beat(times):
    for number in range(times):
        connect().set("heartbeat/train/0/1", f'[{number}, [1, 1, 3, "computing", false], ""]')
        time.sleep(1)
if sys.argv[1] == "failed":
    connect().set("error/1", "what happened there")
threading.Thread(target=beat, args=[1 if sys.argv[1] == "dies" else 300], daemon=True).start()
store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
with Watchdog(Progress(lambda: 0), 60.0), StopSignals() as stop:
    print("ready", flush=True)
    try:
        store.wait(["what nobody sets"], datetime.timedelta(seconds=18 if sys.argv[1] == "lives" else 300))
    except Exception:
        sys.stdout.flush()  # Python comes to the handler when it calls something
        print("received", stop.received.name, flush=True)
os._exit(0)
"""

# A rank has lost another one, and asks a store whose process does not run any more who that is.
UNANSWERED = """
import os, signal, subprocess, sys
from unsloth_accel.ranks.store import connect
from unsloth_accel.recovery.heartbeat import Progress
from unsloth_accel.recovery.watchdog import Watchdog
host = "import sys; from torch.distributed import TCPStore;" \
    "store = TCPStore('127.0.0.1', int(sys.argv[1]), is_master=True, wait_for_workers=False); sys.stdin.read()"
pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
process = subprocess.Popen([sys.executable, "-c", host, os.environ["MASTER_PORT"]], **pipes)
connect()
print(process.pid, flush=True)
with Watchdog(Progress(lambda: 0), 10.0):
    process.send_signal(signal.SIGSTOP)
    raise RuntimeError("Connection closed by peer")
"""


@pytest.mark.parametrize(
    ("peer", "code", "says"),
    [
        ("failed", 128 + SIGTERM, "Rank 1 has left:\nwhat happened there"),
        ("dies", 128 + SIGTERM, "dead, stopped or cut off. At its last heartbeat it was in step 3, computing."),
        ("lives", 0, ""),
    ],
)
def test_a_process_that_is_asked_to_stop_while_it_waits_in_vain_leaves(peer: str, code: int, says: str) -> None:
    environment = {**os.environ, "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "PYTHONPATH": str(ROOT)}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK, peer], cwd=ROOT, env=environment, text=True, stdout=PIPE, stderr=PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(3)  # what it does next takes microseconds, and then it is inside the wait
    process.send_signal(SIGTERM)
    out, said = process.communicate(timeout=120)
    assert process.returncode == code, said
    assert says in said
    if peer == "lives":
        assert out == "received SIGTERM\n", "it is noted, and the wait goes on"
        assert "unsloth_accel" not in said


def test_a_rank_that_names_the_one_it_has_lost_does_not_wait_for_a_store_that_does_not_answer() -> None:
    environment = {**os.environ, "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "PYTHONPATH": str(ROOT)}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    environment |= {"TORCHELASTIC_USE_AGENT_STORE": "True"}
    with subprocess.Popen(
        [sys.executable, "-c", UNANSWERED], cwd=ROOT, env=environment, text=True, stdout=PIPE, stderr=PIPE
    ) as process:
        assert process.stdout is not None
        host = int(process.stdout.readline())
        try:
            _, said = process.communicate(timeout=40)
        finally:
            os.kill(host, SIGKILL)
            process.kill()
    assert process.returncode == STALL_EXIT_CODE, said
    assert "It has lost the store in which the ranks meet." in said


def ended(case: str, out: Path) -> str:
    """What the ranks and the launcher said, which kills the rank that is left after 3 s instead of 30."""
    env = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "3"}
    return launch(WORKER, out, case, env=env, timeout=120, expect_failure=True).stderr


@pytest.mark.long
def test_a_stopped_rank_ends_the_others(tmp_path: Path) -> None:
    said = ended("stopped", tmp_path / "out")
    assert f"unsloth_accel: rank 0 leaves with exit code {STALL_EXIT_CODE}. Rank 1 does not come:" in said
    assert "dead, stopped or cut off" in said
    assert re.search(rf"exitcode +: {STALL_EXIT_CODE} ", said)
    assert "all_reduce" in said, "where this rank waits"
    assert "What to try" in said


@pytest.mark.long
def test_a_looping_rank_ends_the_others_and_itself_and_its_stack_is_shown(tmp_path: Path) -> None:
    said = ended("looping", tmp_path / "out")
    assert "Rank 1 does not come: it has been in step 2, computing the micro-batches, for more than 4 s." in said
    shown = said.partition("Where rank 1 is:\n")[2].partition("Where this rank waits")[0]
    assert ", in looping\n" in shown
    assert "unsloth_accel: rank 1 leaves with exit code" in said, "the others have said why they left"


@pytest.mark.long
def test_a_killed_rank_is_named_by_the_others(tmp_path: Path) -> None:
    launched = launch(WORKER, tmp_path / "out", "killed", timeout=120, expect_failure=True)
    assert "PeerError: Rank 1 does not come: it has not been heard of for" in launched.stderr
    assert "At its last heartbeat it was in step 2, computing the micro-batches." in launched.stderr


@pytest.mark.long
def test_a_rank_that_leaves_without_an_error_is_named_by_the_others(tmp_path: Path) -> None:
    said = launch(WORKER, tmp_path / "out", "leaves", timeout=120, expect_failure=True).stderr
    assert "PeerError: Rank 1 has left `train()`, and this rank is still in it." in said


@pytest.mark.long
def test_long_work_is_not_a_stall(tmp_path: Path) -> None:
    """A rank alone in an evaluation, in `run_once`, and in slow micro-batches, each for longer than the limit."""
    launch(WORKER, tmp_path / "out", "long_work", timeout=180)
    assert [rank["step"] for rank in rank_results(tmp_path / "out")] == [4, 4]
