"""Writes the events of runs, as `unsloth_accel.metrics` does; the numbers are drawn, not measured."""

import json
import math
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

from unsloth_accel import PlanCandidate, StepPlan, StepPlanRecord


BEGAN = 1_790_000_000.0  # 2026-09-21 14:13:20 UTC

ROWS = 16  # of a rank in a step

Line = dict[str, Any]


def start(step: int = 0, time: float = BEGAN, **changed: Any) -> Line:
    line = {
        "event": "start",
        "time": time,
        "step": step,
        "world_size": 2,
        "gpu": "Example GPU",
        "model": "example/llama-3b",
        "trainer": "UnslothAcceleratedSFTTrainer",
        "versions": {"torch": "2.11.0", "unsloth": "2026.10.9", "accelerate": "1.15.0"},
        "global_batch": 16,
        "max_steps": 400,
        "gradient_sync": "deferred",
        "plan": "keep",
    }
    return line | changed


def step(number: int, time: float, **changed: Any) -> Line:
    line = {
        "event": "step",
        "time": time,
        "step": number,
        "seconds": 0.5,
        "tokens": [3000, 1000],
        "computed_tokens": [4000, 1000],
        "wait_seconds": [0.0, 0.2],
        "peak_memory_gib": [20.0, 10.0],
        "mfu": 0.4,
        "hfu": 0.5,
    }
    return line | changed


def log(number: int, time: float, **logs: float) -> Line:
    return {"event": "log", "time": time, "step": number, "logs": logs}


def write(folder: Path, lines: list[Line], tail: str = "") -> Path:
    """Writes the lines, and `tail` as a kill would leave it."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + tail, encoding="utf-8")
    return folder


class Training:
    """A run that looks like one: log-normal rows, a loss that falls, ranks that wait for the one with most tokens."""

    def __init__(self, ranks: int = 2, seed: int = 0, speed: float = 21_000.0, uneven: float = 1.0) -> None:
        self.random = random.Random(seed)
        self.ranks, self.speed, self.uneven = ranks, speed, uneven
        self.time = BEGAN
        self.waited = [0.0] * ranks
        self.peak = 41.0
        self.lines: list[Line] = []

    def start(self, number: int = 0, **changed: Any) -> None:
        self.time += 55.0 if self.lines else 0.0
        given = {"world_size": self.ranks, "global_batch": ROWS * self.ranks, "plan": "auto", "max_steps": 1200}
        self.lines.append(start(number, self.time, **(given | changed)))

    def train(self, first: int, last: int) -> None:
        for number in range(first, last + 1):
            self._step(number, warm=number > first)
            if number % 10 == 0:
                loss = 0.95 + 1.3 * math.exp(-number / 200) + self.random.gauss(0, 0.03)
                self.lines.append(log(number, self.time, loss=loss, learning_rate=2e-4, grad_norm=0.4))
            if number % 150 == 0:
                self.time += 6.0
                self.lines.append(log(number, self.time, eval_loss=1.0 + 1.2 * math.exp(-number / 210)))

    def happened(self, event: str, number: int, **fields: Any) -> None:
        self.lines.append({"event": event, "time": self.time, "step": number, **fields})

    def _step(self, number: int, warm: bool) -> None:
        tokens = self._tokens()
        busy = [count / self.speed + abs(self.random.gauss(0.02, 0.01)) + (0 if warm else 14) for count in tokens]
        seconds = max(busy)
        self.time += seconds
        self.peak = max(self.peak, 36 + max(tokens) / 900)
        achieved = sum(tokens) / self.ranks / seconds
        line = step(number, self.time, seconds=seconds, tokens=tokens, wait_seconds=self.waited)
        line["computed_tokens"] = [count + 16 for count in tokens]
        line["peak_memory_gib"] = [self.peak - 1.2 * rank for rank in range(self.ranks)]
        self.lines.append(line | {"mfu": achieved * 1.95e-5, "hfu": achieved * 2.4e-5})
        self.waited = [seconds - each for each in busy]

    def _tokens(self) -> list[int]:
        """Of rows that are log-normal in length, as far from even as the run is."""
        drawn = [sum(self._row() for _ in range(ROWS)) for _ in range(self.ranks)]
        mean = sum(drawn) / len(drawn)
        return [round(mean + self.uneven * (count - mean)) for count in drawn]

    def _row(self) -> int:
        return min(2048, max(16, round(self.random.lognormvariate(math.log(330), 0.9))))


def plan_found(reason: str = "the fastest of 5 candidates") -> Line:
    """The record of a plan, as `dataclasses.asdict` gives it."""
    times = {(8, 0): 36.4, (4, 0): 32.7, (1, 0): 29.2, (1, 14): 26.8, (1, 28): 24.3}
    candidates = (
        PlanCandidate(pieces=pieces, tokens=None, layers_kept=kept, microseconds=time)
        for (pieces, kept), time in times.items()
    )
    plan = StepPlan(pieces=1, layers_kept=28)
    return asdict(StepPlanRecord(plan=plan, reason=reason, layers=28, candidates=tuple(candidates)))


def long_run(folder: Path) -> Path:
    """1200 steps: a plan found by measuring, a restart, rows cut after running out of memory, a stop."""
    run = Training(speed=14_000.0, uneven=0.15)
    run.start()
    run.train(1, 24)
    run.happened("plan", 24, plan=plan_found())
    run.speed *= 1.5
    run.train(25, 623)
    run.start(600)
    run.happened("plan", 600, plan=plan_found("as before the restart"))
    run.train(601, 900)
    run.happened("split", 900, ranks=[1], pieces=4)
    run.speed *= 0.93
    run.train(901, 1072)
    run.happened("stop", 1072, reason="SIGTERM on rank 1")
    run.start(1072)
    run.happened("plan", 1072, plan=plan_found("as before the restart"))
    run.train(1073, 1200)
    run.happened("end", 1200)
    return write(folder, run.lines)


def other_run(folder: Path) -> Path:
    """1200 plain steps, slower and more uneven, without events."""
    run = Training(seed=1, speed=13_500.0)
    run.start(plan="keep")
    run.train(1, 1200)
    run.happened("end", 1200)
    return write(folder, run.lines)
