"""The hand-written loop and the trainer on the same rows: `examples.py MODEL DATASET OUT STEPS RATE`.

On two ranks: runs examples/own_loop.py as it stands, to the end with a save on the way, resumed from there, then
the trainer. In one process, because importing Unsloth is what takes long. Rank 0 writes OUT.json.
"""

import contextlib
import gc
import io
import json
import os
import runpy
import sys
from pathlib import Path


EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))  # as for a script that lies there

from unsloth_accel import UnslothAcceleratedSFTTrainer  # isort: skip
import torch
from datasets import load_dataset
from train import LINEAR
from trl import SFTConfig
from unsloth import FastLanguageModel


MODEL, DATASET, OUT = sys.argv[1:4]
STEPS, LEARNING_RATE = int(sys.argv[4]), float(sys.argv[5])
BATCH_SIZE, ACCUMULATION, MAX_LENGTH = 2, 2, 256


def own_loop(*more):
    """What the script prints on this rank."""
    arguments = {
        "--model": MODEL,
        "--dataset": DATASET,
        "--output": f"{OUT}.run",
        "--steps": STEPS,
        "--batch-size": BATCH_SIZE,
        "--accumulation": ACCUMULATION,
        "--learning-rate": LEARNING_RATE,
        "--max-length": MAX_LENGTH,
    }
    sys.argv = ["own_loop.py", *(str(part) for pair in arguments.items() for part in pair), *map(str, more)]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        runpy.run_path(str(EXAMPLES / "own_loop.py"), run_name="__main__")
    gc.collect()
    return said.getvalue()


def trainer():
    """The loss and gradient norm of each step, in the words of own_loop.py."""
    model, tokenizer = FastLanguageModel.from_pretrained(
        MODEL, max_seq_length=MAX_LENGTH, load_in_4bit=False, dtype=torch.float32
    )
    trainer = UnslothAcceleratedSFTTrainer(
        model=FastLanguageModel.get_peft_model(model, r=16, lora_alpha=16, target_modules=LINEAR, random_state=3407),
        processing_class=tokenizer,
        train_dataset=load_dataset(DATASET, split="train"),
        args=SFTConfig(
            output_dir=f"{OUT}.run",
            per_device_train_batch_size=BATCH_SIZE,
            gradient_accumulation_steps=ACCUMULATION,
            max_steps=STEPS,
            max_length=MAX_LENGTH,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            optim="adamw_torch",
            weight_decay=0.0,
            max_grad_norm=1.0,
            bf16=False,
            train_sampling_strategy="sequential",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
        ),
    )
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    return "".join(
        f"step {number}: loss {entry['loss']:.7f}, gradient norm {entry['grad_norm']:.7f}\n"
        for number, entry in enumerate(logged, 1)
    )


def main():
    said = {"whole": own_loop("--save-at", 3), "resumed": own_loop("--resume-at", 3), "trainer": trainer()}
    if os.environ["RANK"] == "0":
        Path(f"{OUT}.json").write_text(json.dumps(said))
    else:
        assert "step" not in said["whole"], "rank 0 alone prints"


if __name__ == "__main__":
    main()
