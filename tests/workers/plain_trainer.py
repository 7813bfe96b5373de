"""The mixin in front of transformers' Trainer, on two ranks: `plain_trainer.py OUT`. Without Unsloth it starts fast.

First what TrainingArguments say about DDP; at the end the collator of rank 1 fails.
"""

import json
import os
import sys
from pathlib import Path

import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from unsloth_accel import UnslothAcceleratedTrainerMixin, UnslothAcceleratorPlugin


RANK = int(os.environ["RANK"])
OUT = sys.argv[1]


class AcceleratedTrainer(UnslothAcceleratedTrainerMixin, Trainer):
    pass


class Square(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return {"loss": (self.weight * x).pow(2).mean()}


class Collate:
    """Rank 1's third micro-batch cannot be put together."""

    def __init__(self, fails):
        self.calls, self.fails = 0, fails

    def __call__(self, rows):
        self.calls += 1
        if self.fails and RANK == 1 and self.calls == 3:
            raise ValueError("a row that cannot be collated")
        return {"x": torch.stack([row["x"] for row in rows])}


def train(plugin=None, fails=False, **arguments):
    """What DDP was built with and what was chosen."""
    arguments = TrainingArguments(
        f"{OUT}.run",
        per_device_train_batch_size=1,
        max_steps=4,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        remove_unused_columns=False,
        disable_tqdm=True,
        **arguments,
    )
    rows = [{"x": torch.full((4,), float(index))} for index in range(8)]
    trainer = AcceleratedTrainer(Square(), arguments, Collate(fails), rows, plugin=plugin)
    trainer.train()
    ddp = trainer.model_wrapped
    return {
        "find_unused_parameters": ddp.find_unused_parameters,
        "static_graph": ddp.static_graph,
        "bucket_mb": ddp.bucket_bytes_cap // 2**20,
        "gradient_as_bucket_view": ddp.gradient_as_bucket_view,
        "DDP in charge": ddp.require_backward_grad_sync,
        "weight": ddp.module.weight.tolist(),
    }


def refusal(**arguments):
    try:
        TrainingArguments(f"{OUT}.run", use_cpu=True, **arguments)
    except ValueError as error:
        return str(error)
    return None


def main():
    overlapped = UnslothAcceleratorPlugin(gradient_sync="overlapped")
    result = {
        "by rule": train(),
        "overlapped": train(overlapped),
        "find unused": train(overlapped, ddp_find_unused_parameters=True, ddp_bucket_cap_mb=3),
        "plugin over arguments": train(
            UnslothAcceleratorPlugin(gradient_sync="overlapped", find_unused_parameters=False),
            ddp_find_unused_parameters=True,
        ),
        "static graph": train(ddp_static_graph=True),
        "two precisions": refusal(fp16=True, bf16=True),
    }
    Path(f"{OUT}-{RANK}.json").write_text(json.dumps(result))
    train(fails=True)


if __name__ == "__main__":
    main()
