import pytest

from estimate.recipes import LLAMA_3B, recipe
from unsloth_accel import ConfigurationError


def test_gradients_are_float32_for_adapters_and_bf16_for_all_weights() -> None:
    assert recipe().gradient_bytes / 2**20 == pytest.approx(92.8, abs=0.05), "as the GPU runs report it"
    weights = LLAMA_3B.linear_weights + 2 * LLAMA_3B.head_weights
    assert recipe(lora_rank=None).gradient_bytes == 2 * weights


def test_what_cannot_be_trained_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="`bits` must be 16 where every weight is trained, got 4"):
        recipe(lora_rank=None, bits=4)
    with pytest.raises(ConfigurationError, match="`rows` must be a positive integer, got 0"):
        recipe(rows=0)
