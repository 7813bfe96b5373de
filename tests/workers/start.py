"""How a worker starts and ends: its rank, the tiny model, and the file of what it saw. Imports nothing slow."""

import gc
import json
import os
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any


RANK, WORLD_SIZE = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


@cache
def freeze_imports() -> None:
    """To be called before the first model: what the imports have made is never garbage, and need not be looked at.

    Accelerate and Unsloth call `gc.collect()` five times a training, which takes 0.16 s with all modules in its view.
    """
    gc.freeze()


def write_result(out: str | Path, seen: Mapping[str, Any]) -> None:
    """What `harness.rank_results` reads."""
    Path(f"{out}-{RANK}.json").write_text(json.dumps(seen))


def failure(function: Callable[..., object], *arguments: object, **options: object) -> list[str] | None:
    """How a call fails: the error's type and text, or None where there is none."""
    try:
        function(*arguments, **options)
    except Exception as error:  # whatever it is, the test judges
        return [type(error).__name__, str(error)]
    return None


def tiny_lora(path: str, **options: Any) -> tuple[Any, Any]:
    """The tiny model in float32 with an adapter, and its tokenizer, as Unsloth loads them."""
    import torch
    from unsloth import FastLanguageModel

    freeze_imports()
    model, tokenizer = FastLanguageModel.from_pretrained(
        path, max_seq_length=64, load_in_4bit=False, dtype=torch.float32
    )
    model = FastLanguageModel.get_peft_model(
        model, r=4, lora_alpha=4, target_modules=["q_proj"], random_state=3407, **options
    )
    return model, tokenizer
