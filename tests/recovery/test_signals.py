"""A process notes that it is to stop, and what was there before gets its signals back."""

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

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
