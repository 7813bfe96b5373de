"""transformers' Trainer over balanced rows: `balanced_rows.py OUT`. On one rank the rows are as they come.

Both numbers of rows leave a short last step: one with a row for each rank, and one with a single row.
"""

import sys
from typing import Any

import datasets
import numpy as np
import torch
from start import WORLD_SIZE, write_result
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from unsloth_accel.plan.cost import RowCost
from unsloth_accel.plan.dataloader import balance_batches
from unsloth_accel.plan.lengths import row_lengths


OUT = sys.argv[1]
GLOBAL_BATCH, ACCUMULATION = 8, 2
CONFIG = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2)


class BalancedTrainer(Trainer):
    slots: int | None = None

    def get_train_dataloader(self) -> Any:
        lengths, _ = row_lengths(self.train_dataset)
        cost = RowCost.from_config(CONFIG, padded=True)
        return balance_batches(super().get_train_dataloader(), lengths, cost, ACCUMULATION, self.slots)


def losses(trainer_class: type[Trainer], rows: int, accumulation: int) -> list[float]:
    """Of each step in two epochs."""
    random = np.random.default_rng(0)
    ids = [random.integers(1, 64, tokens).tolist() for tokens in random.integers(2, 40, rows)]
    torch.manual_seed(0)
    trainer = trainer_class(
        LlamaForCausalLM(CONFIG),
        TrainingArguments(
            f"{OUT}.run",
            per_device_train_batch_size=GLOBAL_BATCH // ACCUMULATION // WORLD_SIZE,
            gradient_accumulation_steps=accumulation,
            num_train_epochs=2,
            learning_rate=0.1,
            optim="sgd",
            lr_scheduler_type="constant",
            logging_steps=1,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        DataCollatorForLanguageModeling(pad_token_id=0),
        datasets.Dataset.from_dict({"input_ids": ids}),
    )
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


class OneBatch(BalancedTrainer):
    slots = 1


seen = {}
for rows in (21, 17):
    if WORLD_SIZE == 1:
        seen[f"{rows} rows"] = losses(Trainer, rows, ACCUMULATION)
    else:
        seen[f"{rows} rows, as many batches"] = losses(BalancedTrainer, rows, ACCUMULATION)
        seen[f"{rows} rows, in one batch"] = losses(OneBatch, rows, 1)
write_result(OUT, seen)
