"""A line is whole or it is cut off at its end, and whoever reads can tell."""

import json
import math
from pathlib import Path

import pytest

from unsloth_accel.metrics.event_file import EventFile


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def test_each_event_is_there_when_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    file = EventFile(path)
    for step in (1, 2):
        file.write("step", step, {"tokens": [1.0, 2.0]})
        assert json.loads(lines(path)[-1]).items() >= {"event": "step", "step": step, "tokens": [1.0, 2.0]}.items()
    file.close()
    file.write("step", 3, {})
    assert len(lines(path)) == 2, "what comes after the end is dropped"


def test_what_is_there_stays_and_half_a_line_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    EventFile(path).write("end", 4, {})
    with path.open("a") as file:
        file.write('{"event": "step", "ti')  # killed here
    again = EventFile(path)
    again.write("start", 4, {})
    again.write("step", 5, {})
    first, cut, *after = lines(path)
    assert json.loads(first)["event"] == "end"
    assert cut == '{"event": "step", "ti'
    assert [json.loads(line)["event"] for line in after] == ["start", "step"]


def test_what_json_cannot_say_is_null_or_text(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    logs = {"loss": math.nan, "norms": [math.inf, 1.0], "where": Path("out"), "count": 3}
    EventFile(path).write("log", 1, {"logs": logs})
    (line,) = lines(path)
    assert json.loads(line)["logs"] == {"loss": None, "norms": [None, 1.0], "where": "out", "count": 3}


def test_a_full_disk_ends_the_file_and_not_the_training(full_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    if not full_disk.exists():
        pytest.skip("this user may not mount a small disk")
    path = full_disk / "metrics.jsonl"
    file = EventFile(path)
    for step in range(100):
        file.write("step", step, {"text": "x" * 4000})
    assert caplog.text.count(f"no more is written to {path}") == 1
    *whole, cut = lines(path)
    assert [json.loads(line)["step"] for line in whole] == list(range(len(whole)))
    assert 0 < len(cut) <= 4100


def test_a_file_that_cannot_be_opened_is_said_once(read_only: Path, caplog: pytest.LogCaptureFixture) -> None:
    if not read_only.exists():
        pytest.skip("this user may not mount a read-only disk")
    file = EventFile(read_only / "metrics.jsonl")
    for step in range(3):
        file.write("step", step, {})
    assert caplog.text.count("no more is written") == 1
    assert "Read-only" in caplog.text or "denied" in caplog.text
