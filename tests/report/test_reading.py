"""Lines of `metrics.jsonl` become one run: restarts, kills, ranks that come and go."""

import math
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from report.events import BEGAN, Line, log, plan_found, start, step, write
from unsloth_accel import PlanCandidate, StepPlan, StepPlanRecord
from unsloth_accel.errors import ConfigurationError
from unsloth_accel.report import read_run
from unsloth_accel.report.plan import read_plan


def three_steps(time: float = BEGAN) -> list[Line]:
    return [
        start(time=time),
        step(1, time + 1, seconds=1.0, wait_seconds=[9.0, 9.0]),
        step(2, time + 2, seconds=0.5, wait_seconds=[0.0, 0.25]),
        log(2, time + 2, loss=2.0, eval_loss=2.5, learning_rate=1e-4),
        step(3, time + 3, seconds=0.5, wait_seconds=[0.1, 0.0]),
        log(3, time + 3, loss=1.5),
    ]


def end(number: int, time: float) -> Line:
    return {"event": "end", "time": time, "step": number}


def test_a_step_is_a_row_and_a_rank_a_column(tmp_path: Path) -> None:
    run = read_run(write(tmp_path / "my_run", [*three_steps(), end(3, BEGAN + 4)]))
    assert run.name == "my_run"
    assert run.seconds == 4
    assert run.notes == ()
    steps = run.steps
    assert steps.number.tolist() == [1, 2, 3]
    assert steps.seconds.tolist() == [1.0, 0.5, 0.5]
    assert steps.tokens.tolist() == [[3000, 1000]] * 3
    assert steps.all_tokens.tolist() == [4000] * 3
    assert steps.ranks.tolist() == [2] * 3
    assert steps.warm.tolist() == [0, 1, 1], "the first step after a start is not"
    assert steps.fullest.tolist() == [20.0] * 3
    losses = run.logs["loss"]
    assert (losses[0].tolist(), losses[1].tolist()) == ([2, 3], [2.0, 1.5])


def test_a_wait_belongs_to_the_step_before(tmp_path: Path) -> None:
    waits = read_run(write(tmp_path, three_steps())).steps.wait_seconds
    assert waits[:2].tolist() == [[0.0, 0.25], [0.1, 0.0]], "what the first line tells is of no step"
    assert np.isnan(waits[2]).all(), "nothing has told of the last step"


@pytest.mark.parametrize("tail", ['{"event":"step","ti', '{"event":"step"', "\x00\x00", "{}", "[1]"])
def test_a_last_line_that_is_cut_is_left_out_and_told(tmp_path: Path, tail: str) -> None:
    run = read_run(write(tmp_path, three_steps(), tail))
    assert run.steps.number.tolist() == [1, 2, 3]
    assert any("Line 7 " in note and "cut off" in note for note in run.notes)
    assert any("has not written its end" in note for note in run.notes)


def test_a_line_that_is_cut_before_a_restart_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, three_steps(), '{"event":"log"\n')
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(write(tmp_path / "next", [start(3), step(4, BEGAN)]).joinpath("metrics.jsonl").read_text())
    run = read_run(tmp_path)
    assert run.steps.number.tolist() == [1, 2, 3, 4]
    assert any("Line 7 " in note for note in run.notes)


def test_a_damaged_line_elsewhere_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = write(tmp_path, three_steps()) / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:2], lines[2][:20] + "\n", *lines[3:]]))
    with pytest.raises(ConfigurationError, match=r"line 3 of .*metrics\.jsonl is damaged"):
        read_run(tmp_path)


def test_of_a_resumed_run_the_later_steps_count_and_what_was_beyond_its_start_is_lost(tmp_path: Path) -> None:
    resumed = [
        start(1, BEGAN + 13),
        step(2, BEGAN + 14, seconds=0.7, tokens=[50, 60]),
        log(2, BEGAN + 14, loss=9.0),
    ]
    run = read_run(write(tmp_path, [*three_steps(), *resumed]))
    assert run.steps.number.tolist() == [1, 2], "step 3 was taken back"
    assert run.steps.tokens[1].tolist() == [50, 60]
    assert run.steps.warm.tolist() == [0, 0]
    assert run.logs["loss"][1].tolist() == [9.0]
    assert "eval_loss" not in run.logs, "it was of a step that was taken back"
    assert run.repeated == (0.5, 0.5)
    assert run.idle == (10.0,)
    (restart,) = [event for event in run.events if event.kind == "restart"]
    assert (restart.step, restart.seconds) == (1, 13.0)
    assert restart.text == "resumed at step 1 after 10.0 s; 2 steps computed again"


def test_a_run_that_was_killed_before_its_first_checkpoint_started_again(tmp_path: Path) -> None:
    run = read_run(write(tmp_path, [*three_steps(), start(0, BEGAN + 13), step(1, BEGAN + 14)]))
    assert run.events[-1].text == "started again after 10.0 s; 3 steps computed again"
    assert run.steps.number.tolist() == [1]


def test_of_runs_into_one_folder_the_last_one_counts(tmp_path: Path) -> None:
    later = BEGAN + 1000
    lines = [*three_steps(), end(3, BEGAN + 4), start(0, later), step(1, later + 1), end(1, later + 1)]
    run = read_run(write(tmp_path, lines))
    assert run.steps.number.tolist() == [1]
    assert (run.began, run.seconds, run.idle) == (later, 1.0, ())
    assert run.notes == ("The folder was trained into 2 times; this is the last run.",)


def test_a_run_that_ended_can_be_trained_further(tmp_path: Path) -> None:
    run = read_run(write(tmp_path, [*three_steps(), end(3, BEGAN + 4), start(3, BEGAN + 9), step(4, BEGAN + 10)]))
    assert run.steps.number.tolist() == [1, 2, 3, 4]
    assert run.events[-1].text == "resumed at step 3 after 5.0 s"


def test_a_step_whose_successor_is_lost_keeps_its_wait(tmp_path: Path) -> None:
    run = read_run(write(tmp_path, [*three_steps(), start(2, BEGAN + 13), step(3, BEGAN + 14)]))
    assert run.steps.wait_seconds[1].tolist() == [0.1, 0.0]


def test_a_run_can_go_on_with_another_number_of_ranks(tmp_path: Path) -> None:
    one = step(4, BEGAN + 9, tokens=[10], computed_tokens=[10], wait_seconds=[0.0], peak_memory_gib=[3.0])
    run = read_run(write(tmp_path, [*three_steps(), start(3, BEGAN + 8, world_size=1), one]))
    assert run.steps.ranks.tolist() == [2, 2, 2, 1]
    assert run.steps.all_tokens.tolist() == [4000, 4000, 4000, 10]
    assert run.steps.fullest.tolist() == [20, 20, 20, 3]
    assert "now 1 × Example GPU, before 2 × Example GPU" in run.events[-1].text


def test_what_was_not_measured_is_not_a_number(tmp_path: Path) -> None:
    on_cpu = step(1, BEGAN, mfu=None, hfu=None, peak_memory_gib=[0, 0])
    steps = read_run(write(tmp_path, [start(gpu=None), on_cpu, log(1, BEGAN)])).steps
    assert math.isnan(steps.mfu[0])
    assert math.isnan(steps.hfu[0])
    assert math.isnan(steps.fullest[0]), "the CPU has no peak of GPU memory"


def test_events_are_told_in_words(tmp_path: Path) -> None:
    happened: list[Line] = [
        {"event": "plan", "time": BEGAN + 4, "step": 3, "plan": plan_found("fast")},
        {"event": "split", "time": BEGAN + 5, "step": 3, "ranks": [1], "pieces": 4, "layers_kept": 2},
        {"event": "split", "time": BEGAN + 5, "step": 4, "ranks": [0], "pieces": None, "layers_kept": 0},
        {"event": "stop", "time": BEGAN + 6, "step": 3, "reason": "SIGTERM on rank 1"},
        {"event": "note", "time": BEGAN + 6, "step": 3, "text": "new data"},
        {"event": "of a later version", "time": BEGAN + 7, "step": 3},
        end(3, BEGAN + 8),
    ]
    events = read_run(write(tmp_path, [*three_steps(), *happened])).events
    assert [(event.kind, event.step, event.text) for event in events] == [
        ("start", 0, "2 × Example GPU, 16 rows in a step"),
        ("plan", 3, "1 piece, 28 layers kept, rows balanced: fast"),
        ("split", 3, "out of memory on rank 1: 4 pieces a step from here on"),
        ("split", 4, "out of memory on rank 0: every layer is recomputed from here on"),
        ("stop", 3, "SIGTERM on rank 1"),
        ("note", 3, "new data"),
        ("end", 3, ""),
    ]


def test_the_record_of_a_plan_is_read(tmp_path: Path) -> None:
    tried = [
        PlanCandidate(pieces=2, tokens=None, layers_kept=28, microseconds=51.5),
        PlanCandidate(pieces=1, tokens=None, layers_kept=14, microseconds=47.0),
        PlanCandidate(pieces=4, tokens=None, layers_kept=28),
    ]
    record = StepPlanRecord(plan=StepPlan(pieces=1, layers_kept=14), reason="fastest", candidates=tuple(tried))
    plan = read_plan(asdict(record))
    assert str(plan) == "1 piece, 14 layers kept, rows balanced: fastest"
    assert [(each.name, each.microseconds, each.chosen) for each in plan.candidates] == [
        ("1 piece, 14 layers kept", 47.0, True),
        ("2 pieces, 28 layers kept", 51.5, False),
    ], "the fastest first, without those that were not measured"


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ("keep", "as the arguments say"),
        ("auto", "to be found while training"),
        (asdict(StepPlan()), "micro-batches, 0 layers kept, rows balanced"),
        (asdict(StepPlan(pieces=2, layers_kept="all", balance=False)), "2 pieces, all layers kept"),
    ],
)
def test_what_a_run_was_asked_for_is_read(asked: Any, text: str) -> None:
    assert str(read_plan(asked)) == text


@pytest.mark.parametrize(
    ("lines", "what"),
    [
        (None, r"metrics\.jsonl, and .* does not\. Trainers of this package write it"),
        ([], "at least one step, and .* has none"),
        ([start()], "at least one step, and .* has none"),
        ([step(1, BEGAN)], "line 1 of .* is damaged"),
    ],
    ids=["no file", "empty", "no step", "no start"],
)
def test_what_is_no_run_is_an_error_that_says_what_one_is(tmp_path: Path, lines: list[Line] | None, what: str) -> None:
    if lines is not None:
        write(tmp_path, lines)
    with pytest.raises(ConfigurationError, match=f"`RUN` must hold .*{what}"):
        read_run(tmp_path)


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="`RUN` must be the output folder of a training run, got .*/nowhere"):
        read_run(tmp_path / "nowhere")


def test_reading_loads_neither_torch_nor_what_draws(tmp_path: Path) -> None:
    write(tmp_path, three_steps())
    code = f"""
import sys
from pathlib import Path
from unsloth_accel.report import read_run
read_run(Path({str(tmp_path)!r}))
print([name for name in ("torch", "matplotlib", "jinja2") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
