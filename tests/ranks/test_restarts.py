"""What the launcher restarts goes on, and what no restart mends ends at once."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness import ROOT, launch, rank_results
from unsloth_accel import ConfigurationError
from unsloth_accel.fixes import restarted_ranks
from unsloth_accel.ranks.restarts import may_get_better


if TYPE_CHECKING:
    from torch.distributed import TCPStore

WORKER = ROOT / "tests" / "workers" / "restarts.py"
# What ends an attempt; its last line is what the next attempt must be told.
ATTEMPT = """
import sys
from unsloth_accel import ConfigurationError
from unsloth_accel.ranks.restarts import begin_attempt
begin_attempt()
raise {error}
"""


def after(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "may"),
    [
        (ConfigurationError("`max_steps` is -3"), False),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), False),
        (RuntimeError("I/O error: No space left on device (os error 28)"), False),
        (MemoryError("One row of 9 tokens does not fit into memory by itself on rank 1."), False),
        (after(RuntimeError("saving failed"), OSError(errno.ENOSPC, "full")), False),
        (OSError(errno.EIO, "Input/output error"), True),
        (MemoryError("CUDA out of memory"), True),
        (RuntimeError("Connection closed by peer"), True),
    ],
)
def test_which_errors_a_restart_may_mend(error: BaseException, may: bool) -> None:
    assert may_get_better(error) is may


@pytest.fixture
def store() -> "TCPStore":
    """As torchrun's agent hosts it, for all attempts."""
    from torch.distributed import TCPStore

    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def attempt(number: int, error: str, store: "TCPStore") -> str:
    """What an attempt of one rank says when it ends."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_MAX_RESTARTS": "1"}
    environment |= {"TORCHELASTIC_RESTART_COUNT": str(number), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    code = ATTEMPT.format(error=error)
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, text=True, stderr=subprocess.PIPE, timeout=120
    )
    assert ended.returncode == 1
    return ended.stderr


def test_an_attempt_after_an_error_that_no_restart_mends_ends_with_that_error(store: "TCPStore") -> None:
    attempt(0, "ConfigurationError('`max_steps` is -3')", store)
    said = attempt(1, "RuntimeError('it went on')", store)
    assert "No restart mends what ended this run" in said
    assert "Rank 0 ended with ConfigurationError: `max_steps` is -3" in said
    assert "it went on" not in said


def test_an_attempt_after_another_error_goes_on(store: "TCPStore") -> None:
    attempt(0, "RuntimeError('a bad day')", store)
    assert "it went on" in attempt(1, "RuntimeError('it went on')", store)


def test_the_ranks_of_an_attempt_see_nothing_of_the_one_before(
    store: "TCPStore", monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch.distributed as dist

    store.set("default_pg/0//cpu//0/rank_0", "the address of a process that has died")
    for name, value in {"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert not restarted_ranks.probe(None).needed
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert restarted_ranks.probe(None).needed

    def sees_it() -> bool:
        shared, _, _ = next(dist.rendezvous("env://"))
        return bool(shared.check(["default_pg/0//cpu//0/rank_0"]))

    assert sees_it(), "else the fix is not needed any more"
    undo = restarted_ranks.apply(None)
    assert undo is not None
    assert not sees_it()
    undo()
    assert sees_it()


@pytest.mark.gloo
def test_ranks_that_the_launcher_restarts_after_a_kill_train(tmp_path: Path) -> None:
    launch(WORKER, tmp_path / "out", "killed", options=["--max_restarts", "2"])
    assert [rank["attempt"] for rank in rank_results(tmp_path / "out")] == [1, 1]
    assert [rank["sum"] for rank in rank_results(tmp_path / "out")] == [2.0, 2.0]


@pytest.mark.gloo
def test_wrong_arguments_end_all_attempts_within_seconds(tmp_path: Path) -> None:
    began = time.monotonic()
    said = launch(
        WORKER, tmp_path / "out", "wrong_argument", options=["--max_restarts", "3"], expect_failure=True
    ).stderr
    assert "No restart mends what ended this run, so it ends at once. Rank" in said
    assert "ConfigurationError: `gradient_sync` must be one of" in said
    log = (tmp_path / "out.slow").read_text()
    assert log.count("loads") <= 2, "the first attempt alone came to what is slow"
    assert time.monotonic() - began < 120
