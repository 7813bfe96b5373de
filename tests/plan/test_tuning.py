"""The first steps of a run decide how the rest is computed, on every rank alike."""

from dataclasses import replace

import pytest

from unsloth_accel import StepPlan
from unsloth_accel.plan.pieces import Together
from unsloth_accel.plan.probe import ProbeFigures
from unsloth_accel.plan.tuning import STEPS_TRIED, STEPS_WORTH_TUNING, PlanTuner


GIB, MIB = 2.0**30, 2.0**20
ROOMY = ProbeFigures(
    room=60 * GIB,
    peak=8 * GIB,
    work=0.2 * MIB,
    layer=0.15 * MIB,
    batch_tokens=1000,
    step_tokens=4000,
    together=Together.DOCUMENTS,
    together_tokens=4000,
)
FULL = replace(ROOMY, room=4 * GIB)
# What the slowest rank takes for a step, by pieces; not what the rule begins with.
MILLISECONDS = {1: 300.0, 2: 200.0, 4: 250.0, 8: 400.0}


def tuner(steps: int = 1000, longest_row: int | None = 256, layers: int = 28) -> PlanTuner:
    return PlanTuner(rows=8, micro_batch_rows=2, longest_row=longest_row, layers=layers, balance=True, steps=steps)


def train(search: PlanTuner, figures: list[ProbeFigures], limit: int = 60) -> list[StepPlan]:
    """The plan of each step until one is found, on a machine that takes what `MILLISECONDS` says."""
    plans: list[StepPlan] = []
    while not search.is_done and len(plans) < limit:
        before = plans[-1] if plans else StepPlan()
        plans.append(search.record.plan)
        measured = (
            figures if search.measures_memory else [ProbeFigures(step_tokens=one.step_tokens) for one in figures]
        )
        milliseconds = MILLISECONDS.get(before.pieces or 0, 500.0)
        search.settle(measured, [milliseconds / 2, milliseconds])
    return plans


def test_the_first_step_is_as_written_and_the_second_is_measured() -> None:
    search = tuner()
    plans = train(search, [ROOMY, ROOMY])
    assert plans == [StepPlan(), StepPlan()]
    assert (search.record.plan.pieces, search.record.plan.layers_kept) == (1, 28)
    assert search.record.reason == "the only one that fits"
    assert (search.record.peak_gib, search.record.free_gib, search.record.tokens) == (8.0, 60.0, 4000)


def test_the_fullest_rank_decides() -> None:
    assert train(tuner(), [ROOMY, FULL]) == train(tuner(), [FULL, ROOMY])
    search = tuner(steps=STEPS_WORTH_TUNING - 1)
    train(search, [ROOMY, FULL])
    assert (search.record.plan.pieces, search.record.plan.layers_kept) == (1, 4)
    assert search.record.free_gib == 4.0


def test_a_short_run_takes_the_choice_of_the_rule() -> None:
    search = tuner(steps=STEPS_WORTH_TUNING - 1)
    assert len(train(search, [FULL, FULL])) == 2
    assert len(search.record.candidates) == 4
    assert search.record.reason.startswith("the rule's choice")


def test_candidates_are_tried_and_the_fastest_stays() -> None:
    search = tuner()
    plans = train(search, [FULL, FULL])
    tried = [plan.pieces for plan in plans[2:]]
    assert tried[: 4 * STEPS_TRIED] == [1] * STEPS_TRIED + [2] * STEPS_TRIED + [4] * STEPS_TRIED + [8] * STEPS_TRIED
    assert len(tried) == 4 * STEPS_TRIED + 1, "the time of a step is heard with the next one"
    assert search.record.plan.pieces == 2
    # microseconds of the slowest rank for one of its 4000 tokens
    assert [one.microseconds for one in search.record.candidates] == [75.0, 50.0, 62.5, 100.0]


def test_a_candidate_that_is_hardly_faster_is_not_preferred(monkeypatch: pytest.MonkeyPatch) -> None:
    for pieces in (2, 4):
        monkeypatch.setitem(MILLISECONDS, pieces, 290.0)
    search = tuner()
    train(search, [FULL, FULL])
    assert search.record.plan.pieces == 1, "the rule's"


def test_micro_batches_that_are_not_put_together_only_keep_layers() -> None:
    apart = replace(FULL, together=Together.NOT, together_tokens=0)
    search = tuner()
    train(search, [FULL, apart])
    assert (search.record.plan.pieces, search.record.plan.layers_kept) == (None, 28), "2 rows of 256 tokens"
    search = tuner(longest_row=None)
    train(search, [apart, FULL])
    assert search.record.plan.layers_kept == 0, "rows of any length may come"


def padded(together: Together) -> list[ProbeFigures]:
    """4 micro-batches of 2 rows, of which the longest has 700 tokens on one rank and 500 on the other."""
    return [replace(ROOMY, together=together, together_tokens=8 * longest) for longest in (500, 700)]


@pytest.mark.parametrize("together", [Together.ROWS, Together.IMAGES])
def test_padded_micro_batches_are_put_together_only_if_that_is_measured_to_pay(
    together: Together, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = tuner(steps=STEPS_WORTH_TUNING - 1)
    train(search, padded(together))
    assert (search.record.plan.pieces, search.record.plan.layers_kept) == (4, 28), "as given, every layer kept"
    search = tuner()
    tried = [plan.pieces for plan in train(search, padded(together))[2:]]
    assert tried[: 3 * STEPS_TRIED] == [4] * STEPS_TRIED + [1] * STEPS_TRIED + [2] * STEPS_TRIED
    assert search.record.plan.pieces == 2
    for pieces in (1, 2):
        monkeypatch.setitem(MILLISECONDS, pieces, 240.0)
    search = tuner()
    train(search, padded(together))
    assert search.record.plan.pieces == 4, "hardly faster"


def test_ranks_with_images_and_without_make_one_plan() -> None:
    (rows, _), (images, _) = padded(Together.ROWS), padded(Together.IMAGES)
    tight = [replace(one, room=0.9 * GIB) for one in (rows, images)]
    plans = [tuner(longest_row=512) for _ in range(2)]
    assert train(plans[0], tight) == train(plans[1], tight[::-1])
    alone = tuner(longest_row=512)
    train(alone, [tight[0], tight[0]])
    most = [max(one.layers_kept for one in search.record.candidates) for search in (plans[0], alone)]
    assert most[0] < most[1], "a micro-batch with images is never cut, so it has to fit at its largest"


def test_images_of_any_size_leave_no_layer() -> None:
    search = tuner(longest_row=None)
    train(search, padded(Together.IMAGES))
    assert {one.layers_kept for one in search.record.candidates} == {0}


def test_without_a_gpu_nothing_is_measured() -> None:
    search = tuner(layers=2)
    search.use_unlimited()
    assert search.is_done
    assert search.record.plan == StepPlan(pieces=1, layers_kept=2)
