"""`make demo`: a small model learns a rule, and is asked before and after on phrases that it has not trained on."""

import argparse
import logging
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import fmean


logging.disable(logging.WARNING)  # what torchao and bitsandbytes say of this machine while they are imported
from train import make_trainer, parse_arguments  # isort: skip  # first: it imports Unsloth
import datasets
import torch
import transformers
from datasets import load_dataset
from letters import save_rows, save_small_llama
from unsloth import FastLanguageModel

from unsloth_accel.ranks.run_once import run_once


logging.disable(logging.NOTSET)
datasets.disable_progress_bars()  # of preparing the rows, loading and saving; that of training stays
transformers.logging.disable_progress_bar()

# Chosen by trying: after 400 steps of 32 rows most answers are right.
SETTINGS = ["--batch-size=16", "--accumulation=1", "--learning-rate=6e-3", "--max-length=128"]
SETTINGS += [] if torch.cuda.is_available() else ["--float32"]

# Of docs/metrics.md.
FIGURES = {
    "tokens_per_second": "{:,} tokens/s, padding not counted",
    "imbalance": "{:.2f} x the mean: the tokens of the rank with most",
    "wait_share": "{:.1%} of the time spent waiting for the slower rank",
}


def main() -> None:
    options = parse_own_arguments()
    run_once(lambda: prepare(options.output), key="demo", description="making the rows and the model")
    model, dataset = options.output / "small_llama", options.output / "letters"
    given = [f"--model={model}", f"--dataset={dataset}", f"--output={options.output}", f"--steps={options.steps}"]
    trainer = make_trainer(parse_arguments([*given, *SETTINGS]))
    test = load_dataset(str(dataset), split="test").to_list()
    before = examine(trainer.model, trainer.processing_class, test)
    trainer.train()
    trainer.save_model()  # rank 0 writes
    after = examine(trainer.model, trainer.processing_class, test)
    if trainer.is_world_process_zero():
        print(table(test, before, after), summary(trainer), sep="\n\n")
        print(f"\nThe adapter is in {options.output}. Plots: unsloth-accel report {options.output}")


def parse_own_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("outputs/demo"))
    parser.add_argument("--steps", type=int, default=400)
    return parser.parse_args()


def prepare(folder: Path) -> None:
    save_rows(folder / "letters")
    save_small_llama(folder / "small_llama")


@dataclass(frozen=True)
class Examination:
    answers: dict[str, str]
    loss: float


@torch.no_grad()
def examine(model, tokenizer, rows: list[dict]) -> Examination:
    """What the model answers to each prompt, and its loss on the right answers."""
    FastLanguageModel.for_inference(model)
    answers = {}
    for _, group in groupby(sorted((row["prompt"] for row in rows), key=len), key=len):
        prompts = list(group)  # of one length, so nothing is padded
        inputs = tokenizer(prompts, return_tensors="pt").to(model.device)
        outputs = model.generate(**inputs, max_new_tokens=27, do_sample=False)
        texts = tokenizer.batch_decode(outputs[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        answers |= zip(prompts, texts, strict=True)
    FastLanguageModel.for_training(model)
    return Examination(answers, fmean(loss(model, tokenizer, row) for row in rows))


def loss(model, tokenizer, row: dict) -> float:
    prompt = tokenizer(row["prompt"])["input_ids"]
    completion = [*tokenizer(row["completion"])["input_ids"], tokenizer.eos_token_id]
    ids = torch.tensor([prompt + completion], device=model.device)
    labels = torch.tensor([[-100] * len(prompt) + completion], device=model.device)
    return model(input_ids=ids, labels=labels).loss.item()


def table(rows: list[dict], before: Examination, after: Examination) -> str:
    """A few answers, how many are right, and the loss, before and after."""
    lines = [("phrase", "before", "after", "right answer")]
    for row in sorted(rows[:6], key=lambda row: len(row["prompt"])):
        prompt = row["prompt"]
        lines.append((prompt, before.answers[prompt][:24], after.answers[prompt], row["completion"]))
    right = [sum(said.answers[row["prompt"]] == row["completion"] for row in rows) for said in (before, after)]
    lines.append((f"right of {len(rows)}", *map(str, right), str(len(rows))))
    lines.append(("loss", f"{before.loss:.3f}", f"{after.loss:.3f}", ""))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in lines)


def summary(trainer) -> str:
    """How the ranks were used, in the steps between the last two logs."""
    logged = next((entry for entry in reversed(trainer.state.log_history) if "tokens_per_second" in entry), {})
    known = [words.format(logged[name]) for name, words in FIGURES.items() if name in logged]
    ranks = trainer.args.world_size
    lines = [f"{trainer.state.global_step} steps on {ranks} rank{'s' * (ranks > 1)}", *known, str(trainer.step_plan)]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
