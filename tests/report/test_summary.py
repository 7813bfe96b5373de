"""The figures of a run, against the same computed by hand."""

from pathlib import Path

import pytest

from report.events import BEGAN, Line, log, start, step, write
from unsloth_accel.report import read_run
from unsloth_accel.report.summary import facts, figures, time_spent
from unsloth_accel.report.table import markdown, rows


def small(gpu: str | None = "Example GPU") -> list[Line]:
    """Three steps; then a restart at step 2, 20 s later, step 3 again and step 4."""
    return [
        start(gpu=gpu, max_steps=5, plan="keep"),
        step(1, BEGAN + 8, seconds=8.0, tokens=[300, 100], computed_tokens=[400, 100]),
        step(2, BEGAN + 10, seconds=2.0, tokens=[200, 200], computed_tokens=[200, 300], wait_seconds=[0, 4], mfu=0.2),
        step(3, BEGAN + 12, seconds=2.0, tokens=[999, 999], wait_seconds=[1, 0]),
        start(2, BEGAN + 32, gpu=gpu, max_steps=5),
        step(3, BEGAN + 38, seconds=6.0, tokens=[100, 300], computed_tokens=[100, 300], mfu=0.9),
        log(3, BEGAN + 40, loss=1.25, eval_loss=1.5),
        step(4, BEGAN + 46, seconds=4.0, tokens=[500, 300], computed_tokens=[500, 300], wait_seconds=[2, 1], mfu=0.5),
        {"event": "stop", "time": BEGAN + 50, "step": 4, "reason": "SIGTERM on rank 0"},
    ]


def test_each_figure_is_what_it_says(tmp_path: Path) -> None:
    found = {figure.name: figure for figure in figures(read_run(write(tmp_path, small())))}
    # Warm are steps 2 and 4: 400 and 800 tokens in 2 and 4 seconds.
    expected = {
        "Tokens": (400 + 400 + 400 + 800, "2,000"),
        "Tokens/s": (1200 / 6, "200"),
        "Tokens/s per GPU": (1200 / 6 / 2, "100"),
        "Step time": (3000, "3,000 ms"),
        # Told of steps 1, 2 and 3, which took 8, 2 and 6 seconds.
        "Waiting": (100 * (0 + 4 + 1 + 0 + 2 + 1) / (2 * (8 + 2 + 6)), "25.0 %"),
        "Imbalance": ((300 + 200 + 300 + 500) * 2 / 2000, "1.300"),
        "Padding": (100 * (1 - 2000 / 2200), "9.1 %"),
        "Peak memory": (20, "20.0 GiB"),
        "MFU": (100 * (0.2 * 2 + 0.5 * 4) / 6, "40.0 %"),
        "HFU": (50, "50.0 %"),
        "Training loss": (1.25, "1.2500"),
        "Evaluation loss": (1.5, "1.5000"),
    }
    assert {name: figure.value for name, figure in found.items()} == {
        name: pytest.approx(value) for name, (value, _) in expected.items()
    }
    assert {name: figure.text for name, figure in found.items()} == {
        name: text for name, (_, text) in expected.items()
    }


def test_the_time_of_a_run_is_all_accounted_for(tmp_path: Path) -> None:
    spent = time_spent(read_run(write(tmp_path, small())))
    waiting = (0 + 4 + 1 + 0 + 2 + 1) / 2
    first = (8 - 5) + (6 - 5)  # above the median of 8, 2, 6 and 4 seconds
    assert spent == {
        "computing": pytest.approx(8 + 2 + 6 + 4 - waiting - first),
        "waiting": pytest.approx(waiting),
        "first steps": pytest.approx(first),
        "lost steps": 2,
        "restarting": 20,
        "between steps": pytest.approx(50 - 20 - 2 - 20),
    }
    assert sum(spent.values()) == pytest.approx(50)


def test_what_a_run_is_stands_in_the_table(tmp_path: Path) -> None:
    assert dict(facts(read_run(write(tmp_path, small())))) == {
        "Model": "example/llama-3b",
        "Trainer": "UnslothAcceleratedSFTTrainer",
        "Machine": "2 × Example GPU",
        "Versions": "torch 2.11.0, unsloth 2026.10.9, accelerate 1.15.0",
        "Steps": "4 of 5",
        "Rows in a step": "16",
        "Gradients": "deferred",
        "Plan": "as the arguments say",
        "Time": "50.0 s",
        "Restarts": "1, 1 step computed again",
    }


def test_the_cpu_has_ranks_and_what_it_does_not_know_is_left_out(tmp_path: Path) -> None:
    lines = [line | {"mfu": None, "hfu": None, "peak_memory_gib": [0, 0]} for line in small(gpu=None)]
    run = read_run(write(tmp_path, lines))
    names = {row.name for row in rows([run])}
    assert "Tokens/s per rank" in names
    assert names.isdisjoint({"Tokens/s per GPU", "MFU", "HFU", "Peak memory"})
    assert dict(facts(run))["Machine"] == "2 ranks on CPU"


def test_a_run_of_one_step_has_a_speed(tmp_path: Path) -> None:
    found = {figure.name: figure.text for figure in figures(read_run(write(tmp_path, [start(), step(1, BEGAN + 1)])))}
    assert found["Tokens/s"] == "8,000"
    assert found["Waiting"] == "not known"


def test_two_runs_are_compared_by_ratios(tmp_path: Path) -> None:
    run = read_run(write(tmp_path / "run", small()))
    other = read_run(write(tmp_path / "other", [start(), *(step(n, BEGAN + n, mfu=None) for n in (1, 2, 3))]))
    found = {row.name: row for row in rows([run, other])}
    assert found["Tokens/s"].cells == ("200", "8,000")
    assert found["Tokens/s"].ratio == "0.025 ×"
    assert found["Step time"].ratio == "6.00 ×"
    assert (found["MFU"].cells, found["MFU"].ratio) == (("40.0 %", "not known"), "")
    assert found["Model"].ratio == ""


def test_the_markdown_has_a_line_for_each_row_and_the_notes(tmp_path: Path) -> None:
    run = read_run(write(tmp_path / "a|b", small(), '{"ev'))
    text = markdown([run])
    assert text.startswith("|  | a\\|b |\n| --- | ---: |\n| Model | example/llama-3b |\n")
    assert "| Tokens/s | 200 |\n" in text
    assert text.count("\n| ") == len(rows([run])) + 1
    assert "Line 10 of metrics.jsonl is cut off" in text
    assert "| Tokens/s | 200 | 200 | 1.00 × |\n" in markdown([run, run])
