"""What fits into memory is found from three figures, and more pieces are only made where they let more layers stay."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unsloth_accel import PlanCandidate
from unsloth_accel.plan.candidates import (
    BUSY_TOKENS,
    MemoryFigures,
    as_given,
    candidates,
    first_choice,
    micro_batch_candidate,
)


GIB = 2.0**30
MIB = 2.0**20
LAYERS = 28
# About what a 3b model needs: 0.15 MiB a token for a layer, 0.2 MiB for the rest.
LARGE = MemoryFigures(room=60 * GIB, work=0.2 * MIB, layer=0.15 * MIB, measured_tokens=1000)
SMALL = MemoryFigures(room=8 * GIB, work=0.2 * MIB, layer=0.15 * MIB, measured_tokens=1000)


def test_where_everything_fits_there_is_nothing_to_choose() -> None:
    (only,) = candidates(LARGE, 4000, 2048, 8, LAYERS)
    assert (only.pieces, only.layers_kept) == (1, LAYERS)
    assert only.tokens == int(60 * GIB / (0.2 * MIB + LAYERS * 0.15 * MIB)), "a larger step gets more pieces"


def test_more_pieces_let_more_layers_stay() -> None:
    found = candidates(SMALL, 8000, 512, 8, LAYERS)
    # 8192 MiB, less 0.2 a token, over 0.15 a token and layer
    assert [(one.pieces, one.layers_kept) for one in found] == [(1, 5), (2, 12), (4, 25), (8, LAYERS)]


def test_a_row_is_not_cut() -> None:
    found = candidates(SMALL, 8000, 8000, 8, LAYERS)
    assert [(one.pieces, one.layers_kept) for one in found] == [(1, 5)], "no piece is shorter than the longest row"


def test_padded_micro_batches_are_candidates_as_they_are_and_put_together() -> None:
    found = candidates(LARGE, 8000, 512, 12, LAYERS, padded_batches=6)
    assert [(one.pieces, one.layers_kept) for one in found] == [(n, LAYERS) for n in (1, 2, 4, 6)]
    assert as_given(found, 6) == 3
    found = candidates(SMALL, 8000, 512, 8, LAYERS, padded_batches=4)
    assert [(one.pieces, one.layers_kept) for one in found] == [(1, 5), (2, 12), (4, 25), (8, LAYERS)]
    assert as_given(found, 4) == 2


def test_a_batch_below_the_measured_one_is_not_thought_to_need_less_than_it() -> None:
    tight = MemoryFigures(room=0.19 * GIB, work=0.2 * MIB, layer=0.15 * MIB, measured_tokens=1000)
    assert candidates(tight, 500, 100, 8, LAYERS) == [PlanCandidate(pieces=None, tokens=None, layers_kept=0)]


def test_without_figures_nothing_limits() -> None:
    assert candidates(None, 0, 0, 8, LAYERS) == [PlanCandidate(pieces=1, tokens=None, layers_kept=LAYERS)]


@pytest.mark.parametrize(("tokens", "kept"), [(1000, LAYERS), (8000, 5), (None, 0), (100_000, 0)])
def test_micro_batches_that_are_not_cut_keep_what_fits_at_their_largest(tokens: int | None, kept: int) -> None:
    found = micro_batch_candidate(SMALL, tokens, LAYERS)
    assert (found.pieces, found.layers_kept) == (None, kept)


def test_the_rule_takes_fewer_pieces_unless_each_keeps_the_gpu_busy() -> None:
    found = candidates(SMALL, 8000, 512, 8, LAYERS)
    assert first_choice(found, 8000) == 0
    assert first_choice(found, 4 * BUSY_TOKENS) == 2


@given(
    room=st.floats(0.1, 200),
    work=st.floats(0.01, 2),
    layer=st.floats(0.01, 1),
    tokens=st.integers(16, 100_000),
    longest=st.integers(1, 4096),
    rows=st.integers(1, 64),
    layers=st.integers(0, 80),
)
def test_what_is_found_fits(
    room: float, work: float, layer: float, tokens: int, longest: int, rows: int, layers: int
) -> None:
    memory = MemoryFigures(room * GIB, work * MIB, layer * MIB, 100)
    found = candidates(memory, tokens, longest, rows, layers)
    for one in found:
        if one.pieces is None:
            assert one.layers_kept == 0
            continue
        assert one.tokens is not None
        assert one.pieces <= rows
        largest = max(tokens / one.pieces, longest)
        needed = max(largest, 100) * work + largest * one.layers_kept * layer
        assert needed * MIB <= room * GIB * (1 + 1e-9)
        assert one.tokens * (work + one.layers_kept * layer) * MIB <= room * GIB * (1 + 1e-9)
    kept = [one.layers_kept for one in found]
    assert kept == sorted(set(kept)), "more pieces only for more layers"


def test_nothing_measured_is_no_limit() -> None:
    """Where the rest of memory hides what a small batch took."""
    (only,) = candidates(MemoryFigures(room=8 * GIB, work=0, layer=0, measured_tokens=1000), 8000, 512, 8, LAYERS)
    assert only.tokens == 8 * GIB
