"""`enable_multi_gpu` under plain `python`, with trl imported before Unsloth: `multi_gpu_plain.py MODEL FOLDER`."""

import logging
import sys

from trl import SFTTrainer  # before Unsloth, which replaces it

from unsloth_accel import UnslothAcceleratedTrainerMixin, disable_multi_gpu, enable_multi_gpu, get_multi_gpu_status


logging.basicConfig(format="LOG %(message)s", stream=sys.stdout)
logging.getLogger("unsloth_accel").setLevel(logging.INFO)
enable_multi_gpu()
enable_multi_gpu(batch_size_per_gpu=2)

import datasets
from start import tiny_lora
from trl import SFTConfig


path, folder = sys.argv[1:]
model, tokenizer = tiny_lora(path)
rows = datasets.Dataset.from_list([{"text": "rank and batch"}] * 4)
arguments = SFTConfig(folder, max_steps=1, report_to="none", save_strategy="no", bf16=False)
trainer = SFTTrainer(model=model, processing_class=tokenizer, train_dataset=rows, args=arguments)
assert isinstance(trainer, UnslothAcceleratedTrainerMixin)
trainer.train()
print(get_multi_gpu_status())
disable_multi_gpu()
trainer = SFTTrainer(model=model, processing_class=tokenizer, train_dataset=rows, args=arguments)
assert not isinstance(trainer, UnslothAcceleratedTrainerMixin)
print(get_multi_gpu_status().enabled)
