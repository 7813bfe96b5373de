"""A training loop written by hand on `UnslothAccelerator`; it follows the trajectory of the trainer:

accelerate launch --config_file $(unsloth-accel config path ddp) examples/own_loop.py
"""

import argparse
from collections.abc import Iterator
from itertools import islice
from pathlib import Path


from train import LINEAR, load_rows, model_and_dataset  # isort: skip  # first: it imports Unsloth, before transformers
import torch
from torch.utils.data import DataLoader
from unsloth import FastLanguageModel

from unsloth_accel import UnslothAccelerator


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a name on the Hub or a path; default: a small Llama made on the spot")
    parser.add_argument("--dataset", help="a name on the Hub or a path, with a column `text`; default: docstrings")
    parser.add_argument("--output", type=Path, default=Path("outputs"))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=4, help="rows of one micro-batch on each rank")
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--save-at", type=int, help="save the state after this step")
    parser.add_argument("--resume-at", type=int, help="load the state saved after this step and go on from there")
    return parser.parse_args()


def make_loader(dataset_name: str, tokenizer, options: argparse.Namespace) -> DataLoader:
    def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
        texts = [row["text"].removesuffix(tokenizer.eos_token) + tokenizer.eos_token for row in rows]
        batch = tokenizer(texts, padding=True, truncation=True, max_length=options.max_length, return_tensors="pt")
        return {
            "input_ids": batch["input_ids"],
            "attention_mask": batch["attention_mask"],
            "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100),
        }

    return DataLoader(load_rows(dataset_name), batch_size=options.batch_size, collate_fn=collate)


def optimizer_steps(loader: DataLoader, accumulation: int) -> Iterator[list[dict]]:
    """The micro-batches of each optimizer step, together: the loss is divided by the tokens of all of them."""
    batches = iter(loader)
    while micro_batches := list(islice(batches, accumulation)):
        yield micro_batches


def train_step(accelerator, model, optimizer, micro_batches: list[dict]) -> tuple[float, float]:
    """One optimizer step; returns its loss and gradient norm."""
    labelled = sum((batch["labels"][:, 1:] != -100).sum() for batch in micro_batches)
    tokens = accelerator.reduce(labelled, reduction="sum")
    losses = []
    for batch in micro_batches:
        with accelerator.accumulate(model):
            loss = model(**batch, num_items_in_batch=tokens).loss
            # The ranks average their gradients, and `backward` divides by the micro-batches of a step.
            accelerator.backward(loss * accelerator.num_processes * len(micro_batches))
            if accelerator.sync_gradients:
                norm = accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.detach())
    return accelerator.gather_for_metrics(sum(losses)).sum().item(), norm.item()


def main() -> None:
    options = parse_arguments()
    accelerator = UnslothAccelerator(gradient_accumulation_steps=options.accumulation)
    model_name, dataset_name = model_and_dataset(options)
    model, tokenizer = FastLanguageModel.from_pretrained(
        model_name, max_seq_length=options.max_length, load_in_4bit=False, dtype=torch.float32
    )
    model = FastLanguageModel.get_peft_model(model, r=16, lora_alpha=16, target_modules=LINEAR, random_state=3407)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=options.learning_rate, weight_decay=0.0)
    loader = make_loader(dataset_name, tokenizer, options)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    first = options.resume_at or 0
    if first:
        accelerator.load_state(str(options.output / f"step_{first}"))
        loader = accelerator.skip_first_batches(loader, first * options.accumulation)
    steps = islice(optimizer_steps(loader, options.accumulation), options.steps - first)
    for step, micro_batches in enumerate(steps, first + 1):
        loss, norm = train_step(accelerator, model, optimizer, micro_batches)
        accelerator.print(f"step {step}: loss {loss:.7f}, gradient norm {norm:.7f}")
        if step == options.save_at:
            accelerator.save_state(str(options.output / f"step_{step}"))
    accelerator.wait_for_everyone()
    accelerator.unwrap_model(model).save_pretrained(options.output, is_main_process=accelerator.is_main_process)


if __name__ == "__main__":
    main()
