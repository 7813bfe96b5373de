"""Makes a trainer in one process: `idle_gpus.py hook|drop-in MODEL OUT`."""

import sys


from unsloth_accel import UnslothAcceleratedSFTTrainer, enable_multi_gpu  # isort: skip
from datasets import Dataset
from start import tiny_lora
from trl import SFTConfig, SFTTrainer


how, path, out = sys.argv[1:]
if how == "hook":
    enable_multi_gpu()
model, tokenizer = tiny_lora(path)
rows = Dataset.from_dict({"text": ["rank and batch"] * 4})
trainer_class = SFTTrainer if how == "hook" else UnslothAcceleratedSFTTrainer
trainer_class(
    model=model, processing_class=tokenizer, train_dataset=rows, args=SFTConfig(out, max_length=64, report_to="none")
)
