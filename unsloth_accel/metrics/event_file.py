"""A file of events, one JSON object a line."""

import json
import math
import time
from io import FileIO
from pathlib import Path
from typing import Any

from ..ranks.logging import log_once


class EventFile:
    """Appends events to a file, each with one write of a whole line, so that a reader never waits for the next.

    A process that is killed can leave half a line; the next one ends that before its own. If the file cannot be
    opened, or the disk refuses a line, that is logged, and no more are written: training goes on.

    Args:
        path (`Path`): The file; what is in it stays.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: FileIO | None = None
        self._separator = ""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._separator = "\n" if _ends_in_half_a_line(path) else ""
            # Unbuffered: what is written is there when the process is killed, and nothing is lost on closing.
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            self._give_up(error)

    def write(self, event: str, step: int, fields: dict[str, Any]) -> None:
        """Adds a line.

        Args:
            event (`str`): Its kind.
            step (`int`): The optimizer step that it belongs to; 0 is before the first.
            fields (`dict`): What else is known. What JSON does not know becomes text, numbers that are not finite
                become null.
        """
        if self._file is None:
            return
        line = _as_json({"event": event, "time": time.time(), "step": step, **fields})
        text, self._separator = f"{self._separator}{line}\n".encode(), ""
        try:
            written = self._file.write(text)
        except OSError as error:
            self._give_up(error)
        else:
            if written < len(text):  # the last bytes of a disk
                self._give_up("the disk is full")

    def close(self) -> None:
        """Later events are dropped."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _give_up(self, reason: object) -> None:
        log_once("metrics: no more is written to %s: %s", self._path, reason)
        self.close()


def _ends_in_half_a_line(path: Path) -> bool:
    if not path.exists():
        return False
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 1))
        return file.read() not in (b"", b"\n")


def _as_json(value: Any) -> str:
    try:
        return json.dumps(value, default=str, allow_nan=False)
    except ValueError:  # JSON has no word for infinity, which a gradient norm in fp16 can be
        return json.dumps(_finite(value), default=str, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
