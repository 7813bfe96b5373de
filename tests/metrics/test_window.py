"""The averages of a window, by hand."""

from collections.abc import Sequence

import pytest

from unsloth_accel.metrics.window import StepFacts, Window


def step(
    seconds: float,
    tokens: Sequence[float] = (30, 10),
    computed: Sequence[float] = (40, 10),
    waits: Sequence[float] = (0.0, 0.0),
    memory: Sequence[float] = (0.0, 0.0),
    mfu: float | None = None,
) -> StepFacts:
    return StepFacts(seconds, tokens, computed, waits, memory, mfu, None if mfu is None else 2 * mfu)


def test_tokens_are_summed_before_they_are_divided() -> None:
    found = Window(steps=[step(0.5), step(1.5, tokens=(10, 110), computed=(50, 150))]).averages()
    assert found["tokens_per_second"] == 160 / 2
    assert found["tokens_per_second_per_gpu"] == 40
    assert found["padding_share"] == 1 - 160 / 250
    assert found["imbalance"] == (30 + 110) / (20 + 60)


def test_what_a_rank_waited_belongs_to_the_step_before() -> None:
    first, second = step(1.0), step(2.0, waits=(0.5, 0.1))
    assert "wait_share" not in Window(steps=[first]).averages(), "no rank has told yet"
    assert Window(steps=[first, second]).averages()["wait_share"] == pytest.approx(0.3 / 1.0)
    third = step(4.0, waits=(0.2, 1.2))
    assert Window(before=first, steps=[second, third]).averages()["wait_share"] == pytest.approx((0.3 + 0.7) / 3.0)


def test_the_next_window_goes_on_where_this_one_ends() -> None:
    first = Window(steps=[step(1.0)])
    second = first.next()
    assert second.averages() == {}
    second.steps.append(step(2.0, waits=(0.5, 0.5)))
    assert second.averages()["wait_share"] == 0.5
    assert second.next().next().before is second.steps[-1], "nothing happened in between"


def test_utilization_is_weighted_by_time() -> None:
    found = Window(steps=[step(1.0, mfu=0.4), step(3.0, mfu=0.2)]).averages()
    assert found["mfu"] == pytest.approx(0.25)
    assert found["hfu"] == pytest.approx(0.5)


def test_the_memory_is_that_of_the_fullest_rank() -> None:
    found = Window(steps=[step(1.0, memory=(3.0, 4.0)), step(1.0, memory=(5.0, 4.5))]).averages()
    assert found["peak_memory_gib"] == 5.0


def test_what_was_not_measured_is_left_out() -> None:
    on_cpu = Window(steps=[step(1.0)]).averages()
    assert on_cpu.keys() == {"tokens_per_second", "tokens_per_second_per_gpu", "padding_share", "imbalance"}
    without_tokens = Window(steps=[step(1.0, tokens=(0, 0), computed=(0, 0))]).averages()
    assert without_tokens == {}
