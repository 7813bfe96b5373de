"""Trains a LoRA adapter with Unsloth on every GPU of this machine:

    accelerate launch --config_file $(unsloth-accel config path ddp) examples/train.py

Without arguments it needs no network: the text is the docstrings of this Python's standard library, the model a small
Llama made on the spot. `--model` and `--dataset` take any name on the Hub or a local path instead.
"""

import argparse
from pathlib import Path


from unsloth_accel import UnslothAcceleratedSFTTrainer  # isort: skip  # before trl, transformers: it imports unsloth
import torch
from datasets import Dataset, load_dataset
from stdlib_text import PROMPT, small_llama, stdlib_rows
from trl import SFTConfig
from unsloth import FastLanguageModel

from unsloth_accel.ranks.run_once import run_once


LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
QUESTION = PROMPT.format(name="read_text", arguments="self, encoding=None, errors=None")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a name on the Hub or a path; default: a small Llama made on the spot")
    parser.add_argument("--dataset", help="a name on the Hub or a path, with a column `text`; default: docstrings")
    parser.add_argument("--output", type=Path, default=Path("outputs"), help="where the adapter goes")
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps")
    parser.add_argument("--batch-size", type=int, default=4, help="rows of one micro-batch on each rank")
    parser.add_argument("--accumulation", type=int, default=1, help="micro-batches of one optimizer step")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--max-length", type=int, default=256, help="tokens at which a row is cut")
    parser.add_argument("--load-in-4bit", action="store_true", help="QLoRA; needs a GPU")
    return parser.parse_args()


def prepare_small_model(folder: Path) -> tuple[str, str]:
    """Writes the default text and model; returns their paths."""
    rows = stdlib_rows()
    rows.to_parquet(folder / "stdlib.parquet")
    return small_llama(rows["text"], folder / "small_llama"), str(folder / "stdlib.parquet")


def model_and_dataset(options: argparse.Namespace) -> tuple[str, str]:
    """The names on the command line; what is not named is made by one rank."""
    if options.model and options.dataset:
        return options.model, options.dataset
    model, dataset = run_once(
        lambda: prepare_small_model(options.output), key="small_model", description="making the small model"
    )
    return options.model or model, options.dataset or dataset


def load_rows(name: str) -> Dataset:
    if Path(name).suffix == ".parquet":
        return load_dataset("parquet", data_files=name, split="train")
    return load_dataset(name, split="train")


def load_model(name: str, options: argparse.Namespace):
    model, tokenizer = FastLanguageModel.from_pretrained(
        name, max_seq_length=options.max_length, load_in_4bit=options.load_in_4bit
    )
    model = FastLanguageModel.get_peft_model(model, r=16, lora_alpha=16, target_modules=LINEAR, random_state=3407)
    return model, tokenizer


def answer(model, tokenizer) -> str:
    """What the model makes of the same prompt, before and after."""
    FastLanguageModel.for_inference(model)
    inputs = tokenizer(QUESTION, return_tensors="pt").to(model.device)
    with torch.no_grad():
        generated = model.generate(**inputs, max_new_tokens=32, do_sample=False, no_repeat_ngram_size=2)
    FastLanguageModel.for_training(model)
    return tokenizer.decode(generated[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def main() -> None:
    options = parse_arguments()
    model_name, dataset_name = model_and_dataset(options)
    model, tokenizer = load_model(model_name, options)
    before = answer(model, tokenizer)
    trainer = UnslothAcceleratedSFTTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=load_rows(dataset_name),
        args=SFTConfig(
            output_dir=str(options.output),
            per_device_train_batch_size=options.batch_size,
            gradient_accumulation_steps=options.accumulation,
            max_steps=options.steps,
            max_length=options.max_length,
            learning_rate=options.learning_rate,
            logging_steps=5,
            save_strategy="no",
            report_to="none",
            seed=0,
        ),
    )
    trainer.train()
    trainer.save_model()  # rank 0 writes
    after = answer(model, tokenizer)
    if trainer.is_world_process_zero():
        print(f"\n{QUESTION}\nbefore: {before!r}\nafter:  {after!r}\n\nThe adapter is in {options.output}/")


if __name__ == "__main__":
    main()
