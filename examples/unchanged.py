"""A script in the style of Unsloth's documentation, which knows of one GPU only.

One GPU:   python examples/unchanged.py --model unsloth/Llama-3.2-1B
All GPUs:  accelerate launch --config_file "$(unsloth-accel config path ddp)" -m unsloth_accel examples/unchanged.py \
               --model unsloth/Llama-3.2-1B
"""

import argparse


from unsloth import FastLanguageModel  # isort: skip
import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer


parser = argparse.ArgumentParser()
parser.add_argument("--model", required=True, help="a folder, or a model of the Hub")
parser.add_argument("--output_dir", default="outputs")
parser.add_argument("--max_steps", type=int, default=20)
parser.add_argument("--batch_size", type=int, default=2)
parser.add_argument("--load_in_4bit", action="store_true")
options = parser.parse_args()

model, tokenizer = FastLanguageModel.from_pretrained(
    model_name=options.model,
    max_seq_length=512,
    dtype=None if torch.cuda.is_available() else torch.float32,
    load_in_4bit=options.load_in_4bit,
)
model = FastLanguageModel.get_peft_model(
    model,
    r=16,
    target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    lora_alpha=16,
    lora_dropout=0,
    bias="none",
    use_gradient_checkpointing="unsloth",
    random_state=3407,
)

QUESTION = "### Instruction:\nAdd the numbers.\n\n### Input:\n{}\n\n### Response:\n{}"
numbers = [list(range(start, start + 2 + start % 7)) for start in range(256)]
texts = [QUESTION.format(" + ".join(map(str, terms)), sum(terms)) + tokenizer.eos_token for terms in numbers]

trainer = SFTTrainer(
    model=model,
    tokenizer=tokenizer,
    train_dataset=Dataset.from_dict({"text": texts}),
    args=SFTConfig(
        dataset_text_field="text",
        max_length=512,
        per_device_train_batch_size=options.batch_size,
        gradient_accumulation_steps=2,
        warmup_steps=2,
        max_steps=options.max_steps,
        learning_rate=2e-4,
        logging_steps=1,
        optim="adamw_torch",
        weight_decay=0.01,
        lr_scheduler_type="linear",
        seed=3407,
        output_dir=options.output_dir,
        save_strategy="no",
        report_to="none",
    ),
)
trainer.train()
trainer.save_state()
