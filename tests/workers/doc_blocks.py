"""Runs the Python of pages as it stands there: `doc_blocks.py MODEL OUT PAGE [PAGE ...]`.

What a page takes for granted, as `model`, is made here. The blocks of a page share their names, as in a notebook.
"""

import re
import sys
from pathlib import Path


from start import tiny_lora, write_result  # isort: skip
import unsloth_accel  # isort: skip  # imports Unsloth before what follows
from cases import COMPARABLE
from datasets import Dataset
from trl import SFTConfig


MODEL, OUT, *PAGES = sys.argv[1:]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def taken_for_granted():
    model, tokenizer = tiny_lora(MODEL)
    pair = {"prompt": "rank", "chosen": " and rows", "rejected": " and step"}
    settings = {**COMPARABLE, "max_steps": 2, "max_length": 64, "bf16": False, "per_device_train_batch_size": 2}
    return {
        "model": model,
        "tokenizer": tokenizer,
        "args": SFTConfig("out", **settings),
        "rows": Dataset.from_list([{"text": f"Rank and row {n}. " * (1 + n % 3)} for n in range(16)]),
        "pairs": Dataset.from_list([pair] * 24),
    }


def main() -> None:
    left = {}
    for page in PAGES:
        names = taken_for_granted()
        for block in BLOCK.findall(Path(page).read_text()):
            exec(compile(block, page, "exec"), names)
        trainer = names.get("trainer")
        left[Path(page).stem] = {
            "steps": trainer and trainer.state.global_step,
            "class": type(trainer).__name__,
            "plan": str(getattr(trainer, "step_plan", None)),
            "resume": getattr(names.get("plugin"), "resume", None),
            "enabled": unsloth_accel.get_multi_gpu_status().enabled,
        }
    write_result(OUT, left)


if __name__ == "__main__":
    main()
