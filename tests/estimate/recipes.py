"""The recipe of the tests, as benchmarks/random_llama.py has its shape."""

from typing import Any

from unsloth_accel.estimate.recipe import Recipe
from unsloth_accel.plan.decoder import DecoderShape


LLAMA_3B = DecoderShape(
    hidden=3072,
    intermediate=8192,
    layers=28,
    attending_layers=28,
    heads=24,
    key_value_heads=8,
    head_dim=128,
    vocabulary=128256,
    tied=False,
)


def recipe(**changes: Any) -> Recipe:
    """LoRA r=16 on a 3b Llama, Unsloth's notebook default of 2 rows x 4 accumulation, with changes."""
    given: dict[str, Any] = {
        "shape": LLAMA_3B,
        "bits": 16,
        "lora_rank": 16,
        "sequence": 2048,
        "rows": 2,
        "accumulation": 4,
    }
    return Recipe(**(given | changes))
