"""Makes a trainer in one process: `idle_gpus.py hook|drop-in MODEL OUT`."""

import sys


from unsloth_accel import UnslothAcceleratedSFTTrainer, enable_multi_gpu  # isort: skip
from datasets import Dataset
from trl import SFTConfig, SFTTrainer
from unsloth import FastLanguageModel


how, path, out = sys.argv[1:]
if how == "hook":
    enable_multi_gpu()
model, tokenizer = FastLanguageModel.from_pretrained(path, max_seq_length=64, load_in_4bit=False)
model = FastLanguageModel.get_peft_model(model, r=4, target_modules=["q_proj"])
rows = Dataset.from_dict({"text": ["rank and batch"] * 4})
trainer_class = SFTTrainer if how == "hook" else UnslothAcceleratedSFTTrainer
trainer_class(
    model=model, processing_class=tokenizer, train_dataset=rows, args=SFTConfig(out, max_length=64, report_to="none")
)
