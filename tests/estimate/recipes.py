"""The recipe of the tests, as benchmarks/random_llama.py has its shape, and files for the command line."""

import json
import random
from pathlib import Path
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


LLAMA_3B_CONFIG = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 28,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
}


def write_config(folder: Path) -> Path:
    """The config of a 3b Llama."""
    path = folder / "config.json"
    path.write_text(json.dumps(LLAMA_3B_CONFIG))
    return path


def write_rows(path: Path, count: int) -> Path:
    """Tokenised rows of log-normal lengths, up to 2048."""
    draw = random.Random(1)
    lengths = (max(8, min(2048, int(draw.lognormvariate(5.8, 0.9)))) for _ in range(count))
    path.write_text("".join(json.dumps({"input_ids": [1] * length}) + "\n" for length in lengths))
    return path


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
