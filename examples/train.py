"""Trains a LoRA adapter with Unsloth on every GPU of this machine:

    accelerate launch --config_file "$(unsloth-accel config path ddp)" examples/train.py \
        --model unsloth/Llama-3.2-1B-Instruct --dataset trl-lib/Capybara

Model and dataset are names on the Hub, or folders.
"""

import argparse
from collections.abc import Sequence


from unsloth_accel import UnslothAcceleratedSFTTrainer  # isort: skip  # first: it imports Unsloth
import torch
from datasets import load_dataset
from trl import SFTConfig
from unsloth import FastLanguageModel


LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument(
        "--dataset", required=True, help="with columns that TRL knows: text, messages, or prompt and completion"
    )
    parser.add_argument("--output", default="outputs", help="where the adapter goes")
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps")
    parser.add_argument("--batch-size", type=int, default=2, help="rows of one micro-batch on each rank")
    parser.add_argument("--accumulation", type=int, default=4, help="micro-batches of one optimizer step")
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--max-length", type=int, default=2048, help="tokens at which a row is cut")
    parser.add_argument("--load-in-4bit", action="store_true", help="QLoRA; needs a GPU")
    parser.add_argument("--float32", action="store_true", help="on CPUs several times as fast as bf16")
    return parser.parse_args(arguments)


def make_trainer(options: argparse.Namespace) -> UnslothAcceleratedSFTTrainer:
    model, tokenizer = FastLanguageModel.from_pretrained(
        options.model,
        max_seq_length=options.max_length,
        load_in_4bit=options.load_in_4bit,
        dtype=torch.float32 if options.float32 else None,
    )
    model = FastLanguageModel.get_peft_model(model, r=16, lora_alpha=16, target_modules=LINEAR, random_state=3407)
    return UnslothAcceleratedSFTTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=load_dataset(options.dataset, split="train"),
        args=SFTConfig(
            output_dir=options.output,
            per_device_train_batch_size=options.batch_size,
            gradient_accumulation_steps=options.accumulation,
            max_steps=options.steps,
            max_length=options.max_length,
            learning_rate=options.learning_rate,
            bf16=False if options.float32 else None,
            warmup_steps=10,
            logging_steps=max(1, options.steps // 10),
            save_strategy="no",
            report_to="none",
            seed=0,
        ),
    )


def main() -> None:
    trainer = make_trainer(parse_arguments())
    trainer.train()
    trainer.save_model()  # rank 0 writes


if __name__ == "__main__":
    main()
