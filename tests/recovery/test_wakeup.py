"""A thread hears of a signal, and a forked process keeps its signals to itself."""

import os
import signal
import time

from unsloth_accel.recovery.wakeup import Wakeup


def test_a_signal_ends_the_sleep_and_closing_ends_it_for_good() -> None:
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    wakeup = Wakeup()
    os.kill(os.getpid(), signal.SIGUSR1)
    assert wakeup.sleep(60) == signal.SIGUSR1
    assert wakeup.sleep(0.01) == 0
    wakeup.close()
    assert wakeup.sleep(60) is None
    assert signal.set_wakeup_fd(-1) == -1, "what was set before is back"
    signal.signal(signal.SIGUSR1, before)


def test_a_signal_to_a_forked_process_wakes_nobody_here() -> None:
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    wakeup = Wakeup()
    child = os.fork()
    if child == 0:
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(0.1)
        os._exit(0)
    os.waitpid(child, 0)
    # 0, or SIGCHLD where some library of this process has a handler for it.
    assert wakeup.sleep(0.01) in (0, signal.SIGCHLD)
    wakeup.close()
    signal.signal(signal.SIGUSR1, before)


def test_closing_ends_the_sleep_also_while_a_forked_process_holds_the_same_pipe() -> None:
    wakeup = Wakeup()
    child = os.fork()  # as a data loader's worker, which lives on where training fails
    if child == 0:
        time.sleep(600)
        os._exit(0)
    wakeup.close()
    assert wakeup.sleep(5) is None
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_what_runs_after_a_fork_is_registered_once() -> None:
    from unsloth_accel.recovery.wakeup import _register_at_fork

    for _ in range(3):
        Wakeup().close()
    assert _register_at_fork.cache_info().misses == 1
