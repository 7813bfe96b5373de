"""Reads `metrics.jsonl`: the lives of a run, one after another, become one run."""

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigurationError
from .plan import Plan, read_plan
from .run import Array, Event, Run, Steps
from .words import describe_restart, describe_split, describe_start


METRICS = "metrics.jsonl"
HOW = "Trainers of this package write it into their `output_dir` when several ranks train with DDP"


def read_run(folder: Path) -> Run:
    """Reads what a training run wrote of itself.

    Args:
        folder (`Path`): The trainer's `output_dir`, with `metrics.jsonl` in it.

    Returns:
        `Run`: The steps whose outcome was kept: where a resumed run repeats some, its own count.

    Raises:
        ConfigurationError: If there is no such folder, no such file in it, no step in that, or a line that is no JSON.
    """
    folder = folder.resolve()
    if not folder.is_dir():
        raise ConfigurationError(f"`RUN` must be the output folder of a training run, got {folder}: no such folder.")
    path = folder / METRICS
    if not path.is_file():
        raise ConfigurationError(f"`RUN` must hold {METRICS}, and {folder} does not. {HOW}.")
    lines, notes = read_lines(path)
    lines = last_run(lines, notes)
    lives = _Lives()
    for line in lines:
        lives.add(line)
    if not lives.steps:
        raise ConfigurationError(
            f"`RUN` must hold at least one step, and {path} has none. Each step of train() adds one."
        )
    if lines[-1]["event"] != "end":
        notes.append("The run has not written its end: it is still training, or it was killed.")
    return lives.run(folder.name, float(lines[-1]["time"]), notes)


def read_lines(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The lines, and a note for each that a kill cut off: the last one, or one before a start."""
    lines: list[dict[str, Any]] = []
    notes: list[str] = []
    cut = 0
    for number, text in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        line = _parse(text)
        if cut or not lines:
            _check_start(line, path, cut or 1)
        cut = number if line is None else 0
        if line is None:
            notes.append(f"Line {number} of {METRICS} is cut off and was left out: killed, or not all written yet.")
        else:
            lines.append(line)
    return lines, notes


def last_run(lines: list[dict[str, Any]], notes: list[str]) -> list[dict[str, Any]]:
    """The lines since a run began anew where another one had ended: it trained into the same folder."""
    anew = [
        at
        for at, (before, line) in enumerate(pairwise(lines), start=1)
        if before["event"] == "end" and line["event"] == "start" and line["step"] == 0
    ]
    if not anew:
        return lines
    notes.append(f"The folder was trained into {len(anew) + 1} times; this is the last run.")
    return lines[anew[-1] :]


def _parse(text: str) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except json.JSONDecodeError:
        return None
    return line if isinstance(line, dict) and "event" in line else None


def _check_start(line: dict[str, Any] | None, path: Path, broken: int) -> None:
    """A run begins with a start; a line can be cut off only where a run ends, so a start comes next."""
    if line is None or line["event"] != "start":
        raise ConfigurationError(f"`RUN` must hold a whole {METRICS}; line {broken} of {path} is damaged.")


class _Lives:
    """What holds after each line. A start at step `s` takes back what was beyond it."""

    def __init__(self) -> None:
        self.start: dict[str, Any] = {}
        self.began = 0.0
        self.last_time = 0.0
        self.steps: dict[int, dict[str, Any]] = {}
        self.logs: dict[str, dict[int, float]] = {}
        self.plans: list[Plan] = []
        self.events: list[Event] = []
        self.repeated: list[float] = []
        self.idle: list[float] = []
        self._handlers = {
            "start": self._start,
            "step": self._step,
            "log": self._log,
            "plan": self._plan,
            "split": self._split,
            "stop": self._stop,
            "note": self._note,
            "end": self._end,
        }

    def add(self, line: dict[str, Any]) -> None:
        handle = self._handlers.get(line["event"])
        if handle is not None:  # a later version may write other events
            handle(line)
            self.last_time = float(line["time"])

    def _start(self, line: dict[str, Any]) -> None:
        if not self.start:
            self.began = float(line["time"])
            self._happened("start", line, describe_start(line))
        else:
            lost = [step["seconds"] for number, step in self.steps.items() if number > line["step"]]
            idle = line["time"] - self.last_time
            self._happened("restart", line, describe_restart(line, self.start, len(lost), idle))
            self.repeated += lost
            self.idle.append(idle)
            self._take_back(line["step"])
        self.start = line
        self.plans.append(read_plan(line["plan"]))

    def _take_back(self, step: int) -> None:
        self.steps = {number: each for number, each in self.steps.items() if number <= step}
        for name, series in self.logs.items():
            self.logs[name] = {number: value for number, value in series.items() if number <= step}

    def _step(self, line: dict[str, Any]) -> None:
        number = line["step"]
        before = self.steps.get(number - 1)
        first = number == self.start["step"] + 1
        if before is not None and not first:
            before["own_wait"] = line["wait_seconds"]
        self.steps[number] = {**line, "warm": not first, "own_wait": None}

    def _log(self, line: dict[str, Any]) -> None:
        for name, value in line["logs"].items():
            if isinstance(value, int | float):
                self.logs.setdefault(name, {})[line["step"]] = float(value)

    def _plan(self, line: dict[str, Any]) -> None:
        self.plans.append(read_plan(line["plan"]))
        self._happened("plan", line, str(self.plans[-1]))

    def _split(self, line: dict[str, Any]) -> None:
        self._happened("split", line, describe_split(line))

    def _stop(self, line: dict[str, Any]) -> None:
        self._happened("stop", line, line["reason"])

    def _note(self, line: dict[str, Any]) -> None:
        self._happened("note", line, str(line.get("text", "")))

    def _end(self, line: dict[str, Any]) -> None:
        self._happened("end", line, "")

    def _happened(self, kind: str, line: Mapping[str, Any], text: str) -> None:
        self.events.append(Event(kind, int(line["step"]), float(line["time"]) - self.began, text))

    def run(self, name: str, ended: float, notes: list[str]) -> Run:
        logs = {key: _series(values) for key, values in self.logs.items() if values}
        return Run(
            name=name,
            start=self.start,
            began=self.began,
            seconds=ended - self.began,
            steps=_arrays([self.steps[number] for number in sorted(self.steps)]),
            logs=logs,
            plans=tuple(self.plans),
            events=tuple(self.events),
            repeated=tuple(self.repeated),
            idle=tuple(self.idle),
            notes=tuple(notes),
        )


def _series(values: Mapping[int, float]) -> tuple[Array, Array]:
    order = sorted(values)
    return np.array(order, dtype=np.float64), np.array([values[step] for step in order])


def _arrays(lines: list[dict[str, Any]]) -> Steps:
    ranks = max(len(line["tokens"]) for line in lines)
    single = {name: _column(lines, name) for name in ("seconds", "mfu", "hfu", "warm")}
    return Steps(
        number=_column(lines, "step"),
        tokens=_table(lines, "tokens", ranks),
        computed_tokens=_table(lines, "computed_tokens", ranks),
        wait_seconds=_table(lines, "own_wait", ranks),
        peak_memory_gib=_or_unknown(_table(lines, "peak_memory_gib", ranks)),  # 0 on the CPU
        **single,
    )


def _column(lines: list[dict[str, Any]], name: str) -> Array:
    return np.array([_number(line[name]) for line in lines])


def _table(lines: list[dict[str, Any]], name: str, ranks: int) -> Array:
    table = np.full((len(lines), ranks), np.nan)
    for row, line in zip(table, lines, strict=True):
        values = line[name] or []
        row[: len(values)] = [_number(value) for value in values]
    return table


def _or_unknown(table: Array) -> Array:
    return table if table.any() else np.full_like(table, np.nan)


def _number(value: float | None) -> float:
    return np.nan if value is None else float(value)
