"""Evaluates: `evaluation.py MODEL OUT CASE [CASE ...]`, a JSON line a case.

The trainers are those that Unsloth generates for GPUs, on the CPU. A CASE is `key=value,...`; the keys and their
defaults are those of `evaluate`.
"""

import os

import generated_trainers


generated_trainers.load("sft_trainer")

from unsloth_accel import UnslothAcceleratedSFTTrainer, UnslothAcceleratorPlugin  # isort: skip
import counting_tokenizer
import numpy as np
import torch
from cases import COMPARABLE, RANK, WORLD_SIZE, of_all_ranks, run_cases
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from trl import SFTConfig


WORDS = ["rank", "rows", "gradient", "tokens", "step", "weights"]
ROWS = 13  # no number of ranks divides it


def texts():
    lengths = [3 + 11 * index % 60 for index in range(ROWS)]
    return [{"text": " ".join(WORDS[(index + n) % 6] for n in range(length))} for index, length in enumerate(lengths)]


def right(prediction):
    """How often the most probable token is the right one, and how large the logits of all labelled tokens are."""
    labelled = prediction.label_ids[:, 1:] != -100
    logits = prediction.predictions[:, :-1][labelled]
    return {
        "right": float((logits.argmax(-1) == prediction.label_ids[:, 1:][labelled]).mean()),
        "largest": float(np.abs(logits).max(-1).mean()),
    }


class Rows:
    """Notes the forwards of the model; a rank may run out of memory where a batch has more than `limit` tokens."""

    def __init__(self, model, limit):
        self.tokens, self.forwards, self.limit = 0, 0, limit
        model.register_forward_pre_hook(self.see, with_kwargs=True)

    def see(self, model, args, kwargs):
        self.forwards += 1
        if kwargs["input_ids"].numel() > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        self.tokens += int((kwargs["labels"][..., 1:] != -100).sum())


def evaluate(path, folder, case):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj"]))
    seen = Rows(model, int(case["limit"]) if "limit" in case and RANK == WORLD_SIZE - 1 else 10**9)
    rows = Dataset.from_list(texts())
    options = {}
    if "transform" in case:  # as of images: nobody knows how long the rows are before they are read
        tokenizer = counting_tokenizer.CountingTokenizer.from_pretrained(path)
        rows = rows.with_transform(lambda batch: {"input_ids": tokenizer(batch["text"])["input_ids"]})
        options = {"remove_unused_columns": False, "dataset_kwargs": {"skip_prepare_dataset": True}}
    trainer = UnslothAcceleratedSFTTrainer(
        model=model,
        args=SFTConfig(
            str(folder),
            dataset_num_proc=1,
            per_device_eval_batch_size=int(case.get("rows", "2")),
            padding_free=case.get("padding_free", "yes") == "yes",
            **{**COMPARABLE, "bf16": False, **options},
        ),
        train_dataset=rows,
        eval_dataset=rows,
        compute_metrics=right if "predictions" in case else None,
        processing_class=counting_tokenizer.CountingTokenizer.from_pretrained(path),
        plugin=UnslothAcceleratorPlugin(plan=case.get("plan"), on_oom=case.get("on_oom")),
    )
    # As Unsloth says to do; TRL's own `prediction_step`, which its generated trainer keeps, does not ask for logits.
    os.environ["UNSLOTH_RETURN_LOGITS"] = str(int("predictions" in case))
    first, second = trainer.evaluate(), trainer.evaluate()
    return {
        "loss": first["eval_loss"],
        "again": second["eval_loss"],
        "accuracy": first.get("eval_mean_token_accuracy"),
        "predicted": [first.get("eval_right"), first.get("eval_largest")],
        "tokens": of_all_ranks(seen.tokens // 2),
        "forwards": of_all_ranks(seen.forwards // 2),
    }


if __name__ == "__main__":
    run_cases(evaluate)
