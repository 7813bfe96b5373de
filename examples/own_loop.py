"""A training loop written by hand on `UnslothAccelerator`; it follows the trajectory of the trainer:

    accelerate launch --config_file "$(unsloth-accel config path ddp)" examples/own_loop.py \
        --model outputs/demo/small_llama --dataset outputs/demo/letters --learning-rate 6e-3

Model and dataset are names on the Hub, or folders; these two are what `make demo` leaves.
"""

import argparse
from collections.abc import Iterator
from itertools import islice
from pathlib import Path


from train import LINEAR  # isort: skip  # first: it imports Unsloth, before transformers
import torch
from datasets import load_dataset
from torch.utils.data import DataLoader
from unsloth import FastLanguageModel

from unsloth_accel import UnslothAccelerator


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dataset", required=True, help="with the columns prompt and completion")
    parser.add_argument("--output", type=Path, default=Path("outputs"))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=2, help="rows of one micro-batch on each rank")
    parser.add_argument("--accumulation", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--max-length", type=int, default=2048)
    parser.add_argument("--save-at", type=int, help="save the state after this step")
    parser.add_argument("--resume-at", type=int, help="load the state saved after this step and go on from there")
    return parser.parse_args()


def make_loader(tokenizer, options: argparse.Namespace) -> DataLoader:
    def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
        prompts = tokenizer([row["prompt"] for row in rows])["input_ids"]
        texts = [row["prompt"] + row["completion"] + tokenizer.eos_token for row in rows]
        batch = tokenizer(
            texts,
            padding=True,
            padding_side="right",
            truncation=True,
            max_length=options.max_length,
            return_tensors="pt",
        )
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        for row, prompt in zip(labels, prompts, strict=True):
            row[: len(prompt)] = -100
        return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "labels": labels}

    rows = load_dataset(options.dataset, split="train")
    return DataLoader(rows, batch_size=options.batch_size, collate_fn=collate)


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
    model, tokenizer = FastLanguageModel.from_pretrained(
        options.model, max_seq_length=options.max_length, load_in_4bit=False, dtype=torch.float32
    )
    model = FastLanguageModel.get_peft_model(model, r=16, lora_alpha=16, target_modules=LINEAR, random_state=3407)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=options.learning_rate, weight_decay=0.0)
    loader = make_loader(tokenizer, options)
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
