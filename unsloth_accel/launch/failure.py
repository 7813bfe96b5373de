"""Finds out which rank of a failed launch failed first, and with what."""

import base64
import json
import os
import pickle
import re
import signal
import time
from contextlib import suppress
from pathlib import Path

from ..errors import UnslothAccelError


# torch's report of a failed launch, https://docs.pytorch.org/docs/stable/elastic/errors.html, which also lists the
# ranks that it stopped itself because of the first failure, and its line about each of those.
_REPORTED = re.compile(r"rank\s+: (\d+) \(local_rank: \d+\)\s+exitcode\s+: (-?\d+) \(pid: (\d+)\)")
_STOPPED = re.compile(r"Sending process (\d+) closing signal")
_TAIL_LINES = 30
# Tells a rank to write where it is.
ASKS_FOR_STACK = signal.SIGUSR2
_ANSWER_SECONDS = 1.0


class LaunchError(UnslothAccelError, RuntimeError):
    """Raised by `launch_ddp_training` when a rank failed. The message holds that rank's traceback or last output.

    The rank's own exception, where it can be pickled, is the `__cause__`.

    Args:
        message (`str`):
            What happened.
        rank (`int`, *optional*):
            The rank that failed first; `None` when the launcher itself failed.
    """

    def __init__(self, message: str, rank: int | None = None) -> None:
        super().__init__(message)
        self.rank = rank


def first_failure(folder: Path) -> LaunchError:
    """Reads what the ranks and the launcher left in `folder`.

    A rank that ended by itself, but left no record, was killed or left by `os._exit`: the errors of the others (a
    lost connection) follow from that. Among records, one that only tells of another rank comes last.
    """
    records = sorted(
        (json.loads(path.read_text()) for path in folder.glob("error_*.json")),
        key=lambda record: (record["from_peer"], record["time"]),
    )
    recorded = {record["rank"] for record in records}
    log = _tail(folder / "launcher.txt", lines=200)
    stopped = set(_STOPPED.findall(log))
    for rank, code, pid in _REPORTED.findall(log):
        if int(rank) not in recorded and pid not in stopped:
            return _silent_death(folder, int(rank), int(code))
    if records:
        return _recorded_failure(records[0])
    return LaunchError(f"`accelerate launch` failed before a rank could say why. Its last output:\n{log}")


def ask_for_stacks(folder: Path) -> str:
    """Where each rank is that still runs."""
    for path in folder.glob("pid_*"):
        with suppress(ProcessLookupError):
            os.kill(int(path.stem.removeprefix("pid_")), ASKS_FOR_STACK)
    time.sleep(_ANSWER_SECONDS)
    texts = {path.stem.removeprefix("stack_"): _tail(path) for path in sorted(folder.glob("stack_*.txt"))}
    return "\n".join(f"rank {rank}:\n{text or '(no Python stack)'}" for rank, text in texts.items())


def _recorded_failure(record: dict[str, object]) -> LaunchError:
    error = LaunchError(f"rank {record['rank']} failed:\n\n{record['traceback']}", rank=int(str(record["rank"])))
    if record["exception"] is not None:
        with suppress(Exception):  # its class may be one of a module that only the rank finds
            error.__cause__ = pickle.loads(base64.b64decode(str(record["exception"])))
    return error


def _silent_death(folder: Path, rank: int, code: int) -> LaunchError:
    if code < 0:
        how = f"was killed by {signal.Signals(-code).name}"
        how += " (often the kernel, when the machine runs out of memory)" if -code == signal.SIGKILL else ""
    else:
        how = f"ended with exit code {code} without an exception (`os._exit`, or a crash outside Python)"
    parts = [f"rank {rank} {how}."]
    for title, name in (("Its last output", "output"), ("Where it was", "stack")):
        text = _tail(folder / f"{name}_{rank}.txt")
        if text:
            parts.append(f"{title}:\n{text}")
    return LaunchError("\n".join(parts), rank=rank)


def _tail(path: Path, lines: int = _TAIL_LINES) -> str:
    if not path.exists():
        return ""
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
