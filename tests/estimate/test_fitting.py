"""Which plans fit into a memory."""

from estimate.recipes import recipe
from unsloth_accel import UnslothAcceleratorPlugin
from unsloth_accel.estimate.fitting import MARGIN, chosen, estimate, fitting_plans, reduction_bytes, room


def test_the_most_layers_are_kept_that_fit() -> None:
    plans = fitting_plans(recipe(), 2, tokens=16_384, longest_row=2048, limit=30.0)
    first = plans[0]
    assert first.candidate.pieces == 1
    kept = first.candidate.layers_kept
    assert 0 < kept < 28
    assert first.memory.peak <= 30.0 < estimate(recipe(), 2, 16_384, kept + 1).peak


def test_more_pieces_are_named_only_where_they_keep_more_layers() -> None:
    plans = fitting_plans(recipe(), 2, tokens=16_384, longest_row=2048, limit=30.0)
    kept = [plan.candidate.layers_kept for plan in plans]
    assert kept == sorted(set(kept))
    assert kept[-1] == 28
    assert [plan.candidate.tokens for plan in plans] == [16_384 // (plan.candidate.pieces or 1) for plan in plans]


def test_with_room_for_all_there_is_one_plan() -> None:
    (plan,) = fitting_plans(recipe(), 2, tokens=16_384, longest_row=2048, limit=71.5)
    assert (plan.candidate.pieces, plan.candidate.layers_kept) == (1, 28)
    assert chosen([plan], 16_384) is plan


def test_a_row_is_never_cut() -> None:
    plans = fitting_plans(recipe(rows=1, accumulation=8), 2, tokens=9000, longest_row=8000, limit=20.0)
    assert all((plan.candidate.tokens or 0) >= 8000 for plan in plans)


def test_where_not_even_one_row_fits_there_is_no_plan() -> None:
    assert fitting_plans(recipe(), 2, tokens=16_384, longest_row=2048, limit=6.0) == []


def test_a_run_leaves_the_margin_and_the_context_alone() -> None:
    assert room(80) == 80 * 0.9 - 0.5
    assert UnslothAcceleratorPlugin().memory_margin == MARGIN, "what a run leaves alone"


def test_deferred_gradients_are_copied_in_chunks_and_overlapped_ones_not_at_all() -> None:
    assert reduction_bytes(10 * 2**20) == 10 * 2**20
    assert reduction_bytes(500 * 2**20) == 64 * 2**20
    assert reduction_bytes(3 * 2**30) == 0
    assert estimate(recipe(), 1, 4096, 0).reduction == 0.0, "one rank averages nothing"
