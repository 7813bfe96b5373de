"""`trainer.save_model` by rank 0 alone and by all ranks, with training between: python save_model.py MODEL OUT."""

import sys
import time
from pathlib import Path
from typing import Any

from start import RANK, failure, tiny_lora, write_result


from unsloth_accel import UnslothAcceleratedSFTTrainer  # isort: skip
from datasets import Dataset
from safetensors.torch import load_file
from trl import SFTConfig


model_folder, out = map(Path, sys.argv[1:])
rows = Dataset.from_list([{"text": f"Row {index} of the data"} for index in range(8)])


def make_trainer(output_dir: Path) -> UnslothAcceleratedSFTTrainer:
    model, tokenizer = tiny_lora(str(model_folder))
    arguments = SFTConfig(
        output_dir=str(output_dir),
        per_device_train_batch_size=4,
        max_steps=1,
        learning_rate=1e-2,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
    )
    return UnslothAcceleratedSFTTrainer(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer)


def changed_since(folder: Path, before: dict[str, Any]) -> bool:
    """Whether the adapter that lies there is another one than `before`."""
    found = load_file(folder / "adapter_model.safetensors")
    return any(not value.equal(before[name]) for name, value in found.items())


def in_place(folder: Path, trainer: UnslothAcceleratedSFTTrainer) -> bool:
    """Whether what lies there is what this rank has in memory."""
    own = dict(trainer.model.named_parameters())
    found = load_file(folder / "adapter_model.safetensors")
    return all(value.equal(own[name.replace(".weight", ".default.weight")]) for name, value in found.items())


trainer = make_trainer(out / "trainer")
folder = out / "adapter"
if RANK == 0:
    trainer.save_model(str(folder))
trainer.accelerator.wait_for_everyone()
first = load_file(folder / "adapter_model.safetensors")
trainer.train()
trainer.save_model(str(folder))
seen = {"saved": in_place(folder, trainer), "changed": changed_since(folder, first)}

stamped = make_trainer(out / f"trainer-{time.time_ns()}-{RANK}")
seen["stamped"] = failure(stamped.save_model)
write_result(out / "seen", seen)
