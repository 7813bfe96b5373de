"""How a worker starts and ends: its rank, the tiny model, and the file of what it saw. Imports nothing slow."""

import json
import os
from pathlib import Path


RANK, WORLD_SIZE = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def write_result(out, seen):
    """What `harness.rank_results` reads."""
    Path(f"{out}-{RANK}.json").write_text(json.dumps(seen))


def failure(function, *arguments, **options):
    """How a call fails: the error's type and text, or None where there is none."""
    try:
        function(*arguments, **options)
    except Exception as error:  # whatever it is, the test judges
        return [type(error).__name__, str(error)]
    return None


def tiny_lora(path, targets=("q_proj",), r=4, **options):
    """The tiny model in float32 with an adapter, and its tokenizer, as Unsloth loads them."""
    import torch
    from unsloth import FastLanguageModel

    model, tokenizer = FastLanguageModel.from_pretrained(
        path, max_seq_length=64, load_in_4bit=False, dtype=torch.float32
    )
    model = FastLanguageModel.get_peft_model(
        model, r=r, lora_alpha=r, target_modules=list(targets), random_state=3407, **options
    )
    return model, tokenizer
