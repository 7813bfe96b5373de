"""The file that asks a run to stop: who sees it, when it goes, and that nobody waits for a look."""

import ctypes
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from unsloth_accel.recovery.stop_file import LOOK_SECONDS, StopFile


@pytest.fixture
def stall(tmp_path: Path) -> Iterator[Callable[[], None]]:
    """Puts in place of the folder a network file system whose server does not answer: one without a server."""
    libc, device = ctypes.CDLL(None), os.open("/dev/fuse", os.O_RDWR) if os.path.exists("/dev/fuse") else None

    def mount() -> None:
        options = f"fd={device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}"
        if device is None or libc.mount(b"stalled", bytes(tmp_path), b"fuse.stalled", 0, options.encode()) != 0:
            pytest.skip("this user may not mount a file system of its own")

    yield mount
    if device is not None:
        os.close(device)  # what waits for an answer gets an error
        libc.umount2(bytes(tmp_path), 2)  # MNT_DETACH


def wait_until_seen(stop: StopFile) -> None:
    deadline = time.monotonic() + 60
    while not stop.seen:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_file_made_while_it_is_entered_is_seen_and_removed_at_the_end(tmp_path: Path) -> None:
    with StopFile(str(tmp_path)) as stop:
        assert not stop.seen
        (tmp_path / "stop").touch()
        wait_until_seen(stop)
    assert not (tmp_path / "stop").exists()


def test_one_of_a_run_before_is_removed_and_said_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    (tmp_path / "stop").touch()
    with StopFile(str(tmp_path)) as stop:
        assert not (tmp_path / "stop").exists()
        assert not stop.seen
    assert caplog.messages == [
        f"{tmp_path / 'stop'} was there before training began: it is removed, and stops nothing"
    ]


def test_one_made_while_the_ranks_failed_stays_and_stops_those_that_the_launcher_restarts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stop").touch()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")

    def fail() -> None:
        with StopFile(str(tmp_path)) as stop:
            wait_until_seen(stop)
            raise RuntimeError("a crash")

    with pytest.raises(RuntimeError, match="a crash"):
        fail()
    assert (tmp_path / "stop").exists()
    with StopFile(str(tmp_path)) as stop:
        wait_until_seen(stop)


def test_a_folder_of_that_name_asks_for_nothing_and_stays(tmp_path: Path) -> None:
    (tmp_path / "stop").mkdir()
    with StopFile(str(tmp_path)) as stop:
        time.sleep(0.2)  # the first look
        assert not stop.seen
    assert (tmp_path / "stop").is_dir()


def test_nobody_waits_for_a_file_system_that_does_not_answer(tmp_path: Path, stall: Callable[[], None]) -> None:
    with StopFile(str(tmp_path)) as stop:
        stall()
        time.sleep(1.5 * LOOK_SECONDS)  # so that a look is on its way
        began = time.monotonic()
        assert not stop.seen
    assert time.monotonic() - began < LOOK_SECONDS
