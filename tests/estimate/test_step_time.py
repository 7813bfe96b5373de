"""Operations and kernel starts of a step."""

import pytest

from estimate.recipes import LLAMA_3B, recipe
from unsloth_accel.estimate.step_time import EFFICIENCY, RankWork, compute_ms, device_ms, host_ms


PEAK = 989.5e12
WEIGHTS = LLAMA_3B.linear_weights + LLAMA_3B.head_weights


def operations(tokens: float, squares: float, layers_kept: int, **changes: int | None) -> float:
    milliseconds = device_ms(recipe(**changes), RankWork(tokens, squares, 1, layers_kept), PEAK)
    return milliseconds / 1000 * EFFICIENCY * PEAK


def test_a_token_takes_4n_for_adapters_6n_for_all_weights_and_2_more_where_layers_are_recomputed() -> None:
    assert operations(1, 0, 28) == pytest.approx(4 * WEIGHTS)
    assert operations(1, 0, 28, lora_rank=None) == pytest.approx(6 * WEIGHTS)
    assert operations(1, 0, 0) == pytest.approx(4 * WEIGHTS + 2 * LLAMA_3B.linear_weights)
    assert operations(1, 0, 14) == pytest.approx(4 * WEIGHTS + LLAMA_3B.linear_weights)


def test_attention_grows_with_the_square_of_a_document() -> None:
    assert operations(0, 1, 28) == pytest.approx(6 * 28 * 3072)
    assert operations(0, 1, 0) == pytest.approx(8 * 28 * 3072)


def test_the_host_starts_the_kernels_of_each_piece_and_pass() -> None:
    one = host_ms(recipe(), RankWork(1000, 0, 1, 28))
    assert host_ms(recipe(), RankWork(9000, 0, 4, 28)) == pytest.approx(4 * one)
    assert host_ms(recipe(), RankWork(1000, 0, 1, 0)) == pytest.approx(1.5 * one)


def test_a_step_takes_what_the_slower_of_both_takes() -> None:
    few, many = RankWork(100, 0, 1, 28), RankWork(100_000, 0, 1, 28)
    assert compute_ms(recipe(), few, PEAK) == host_ms(recipe(), few)
    assert compute_ms(recipe(), many, PEAK) == device_ms(recipe(), many, PEAK)
