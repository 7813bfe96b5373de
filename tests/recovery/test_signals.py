"""A process notes that it is to stop, and what was there before gets its signals back."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from subprocess import PIPE

import pytest

from harness import ROOT, free_port
from unsloth_accel.recovery.signals import STOP_SIGNALS, StopSignals


@pytest.fixture
def arrived() -> Iterator[list[int]]:
    """The signals that came to the handler from before."""
    signals: list[int] = []
    before = {number: signal.signal(number, lambda came, _: signals.append(came)) for number in STOP_SIGNALS}
    yield signals
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_the_first_signal_is_noted_and_its_copy_is_not_a_second_one(
    number: signal.Signals, arrived: list[int]
) -> None:
    with StopSignals() as stop:
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        assert stop.received is number
    assert arrived == []


def test_the_handler_from_before_is_back_at_the_end(arrived: list[int]) -> None:
    with StopSignals():
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    assert arrived == [signal.SIGTERM]


def test_a_signal_is_passed_on_to_the_handler_from_before(arrived: list[int]) -> None:
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGUSR1)
        stop.pass_on(signal.SIGUSR1)
    assert arrived == [signal.SIGUSR1]


def test_in_another_thread_nothing_is_installed(arrived: list[int]) -> None:
    entered, leaves = threading.Event(), threading.Event()

    def stay() -> None:
        with StopSignals():
            entered.set()
            leaves.wait(60)

    thread = threading.Thread(target=stay)
    thread.start()
    assert entered.wait(60)
    os.kill(os.getpid(), signal.SIGTERM)
    leaves.set()
    thread.join()
    assert arrived == [signal.SIGTERM]


def test_a_forked_process_is_still_ended_by_sigterm() -> None:
    reader, writer = os.pipe()
    with StopSignals() as stop:
        child = os.fork()
        if child == 0:
            os.write(writer, b"!")
            time.sleep(60)
            os._exit(0)
        os.read(reader, 1)  # Python drops a signal that comes while it forks
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
        assert stop.received is None, "it was not for this process"
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGTERM


# A wait in C++ that no signal interrupts, as that in a collective. Rank 1 is said to have failed, or not.
STUCK = """
import datetime, sys
from torch.distributed import TCPStore
from unsloth_accel.ranks.store import connect
from unsloth_accel.recovery.signals import StopSignals
if sys.argv[1] == "failed":
    connect().set("error/1", "what happened there")
store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
with StopSignals() as stop:
    print("ready", flush=True)
    try:
        store.wait(["what nobody sets"], datetime.timedelta(seconds=20 if sys.argv[1] == "lives" else 300))
    except Exception:
        sys.stdout.flush()  # Python comes to the handler when it calls something
        print("received", stop.received.name, flush=True)
sys.stdout.flush()
import os
os._exit(0)
"""


@pytest.mark.parametrize(("peer", "code"), [("failed", 128 + signal.SIGTERM), ("lives", 0)])
def test_a_process_that_waits_for_a_failed_rank_leaves_when_it_is_asked_to(peer: str, code: int) -> None:
    environment = {**os.environ, "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "PYTHONPATH": str(ROOT)}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK, peer], cwd=ROOT, env=environment, text=True, stdout=PIPE, stderr=PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(3)  # what it does next takes microseconds, and then it is inside the wait
    process.send_signal(signal.SIGTERM)
    out, said = process.communicate(timeout=120)
    assert process.returncode == code, said
    if peer == "failed":
        assert "rank 0 was asked to stop (SIGTERM) while it waits for rank 1, which has failed" in said
    else:
        assert out == "received SIGTERM\n", "it is noted, and the wait goes on"
