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

from harness import ROOT
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
    with StopSignals():
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGTERM


# A wait in C++ that no signal interrupts, as that in a collective.
STUCK = """
import datetime, sys
from torch.distributed import TCPStore
from unsloth_accel.recovery import stuck
from unsloth_accel.recovery.signals import StopSignals
stuck.STUCK_SECONDS = 1.0
store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
with StopSignals():
    print("ready", flush=True)
    store.wait(["what nobody sets"], datetime.timedelta(seconds=300))
"""


def test_a_process_that_is_stuck_in_a_collective_leaves_when_it_is_asked_to() -> None:
    ranks = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    environment = {name: value for name, value in os.environ.items() if name not in ranks}
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK], cwd=ROOT, env=environment, text=True, stdout=PIPE, stderr=PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert "rank 0 was asked to stop (SIGTERM) while it waits in a call that does not end" in said
