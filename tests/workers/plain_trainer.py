"""The mixin in front of transformers' Trainer, on two ranks: `plain_trainer.py OUT`. Without Unsloth it starts fast.

First what TrainingArguments say about DDP, saving and resuming; at the end the collator of rank 1 fails, in a process
of its data loader that still lives then.
"""

import os
import sys
from pathlib import Path

import torch
from start import RANK, failure, write_result
from torch import nn
from transformers import Trainer, TrainingArguments

from unsloth_accel import UnslothAcceleratedTrainerMixin, UnslothAcceleratorPlugin


OUT = sys.argv[1]


class AcceleratedTrainer(UnslothAcceleratedTrainerMixin, Trainer):
    def _save_optimizer_and_scheduler(self, output_dir):
        """The moment after the weights were saved."""
        self.saved = sorted(os.listdir(output_dir))
        super()._save_optimizer_and_scheduler(output_dir)


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


def make(plugin=None, fails=False, **arguments):
    options = {"per_device_train_batch_size": 1, "max_steps": 4, "use_cpu": True, "save_strategy": "no"}
    options |= {"report_to": "none", "remove_unused_columns": False, "disable_tqdm": True}
    rows = [{"x": torch.full((4,), float(index))} for index in range(8)]
    arguments = TrainingArguments(f"{OUT}.run", **options | arguments)
    return AcceleratedTrainer(Square(), arguments, Collate(fails), rows, plugin=plugin)


def train(plugin=None, fails=False, **arguments):
    """What DDP was built with and what was chosen."""
    trainer = make(plugin, fails, **arguments)
    trainer.train()
    ddp = trainer.model_wrapped
    return {
        "find_unused_parameters": ddp.find_unused_parameters,
        "static_graph": ddp.static_graph,
        "bucket_mb": ddp.bucket_bytes_cap // 2**20,
        "gradient_as_bucket_view": ddp.gradient_as_bucket_view,
        "deferred": None if trainer._run is None else trainer._run.deferred,
        "weight": ddp.module.weight.tolist(),
        "fixes": trainer.applied_fixes.names,
    }


def stands_down():
    """As Unsloth's tensor parallelism is asked for, though nothing here splits the model."""
    os.environ["UNSLOTH_TP_SIZE"] = "2"
    try:
        return train()
    finally:
        del os.environ["UNSLOTH_TP_SIZE"]


class FullDisk:
    """What is written after the weights."""

    def save_pretrained(self, folder):
        raise OSError(f"no space left, after {sorted(os.listdir(folder))}")


def save():
    """A checkpoint on the way, from which a second trainer goes on; then a folder, and one that stays half written."""
    first, resumed = make(save_strategy="steps", save_steps=2), make()
    first.train()
    resumed.train(resume_from_checkpoint=f"{OUT}.run/checkpoint-2")
    first.save_model(f"{OUT}.model")
    written = sorted(os.listdir(f"{OUT}.model"))
    first.processing_class = FullDisk()
    return {
        "checkpoint": first.saved,
        "weights": [trainer.model.weight.tolist() for trainer in (first, resumed)],
        "folder": written,
        "error": failure(first.save_model, f"{OUT}.half"),
        "left": [name for name in os.listdir(Path(OUT).parent) if name.endswith(".incomplete") or "half" in name],
    }


def trained_apart():
    """Without a GPU, and nothing says that the ranks run on the CPU."""
    on_cpu = os.environ.pop("ACCELERATE_USE_CPU")
    try:
        return failure(make, use_cpu=False)
    finally:
        os.environ["ACCELERATE_USE_CPU"] = on_cpu


def main():
    overlapped = UnslothAcceleratorPlugin(gradient_sync="overlapped")
    result = {
        "apart": trained_apart(),  # before there is a process group
        "by rule": train(),
        "overlapped": train(overlapped),
        "find unused": train(overlapped, ddp_find_unused_parameters=True, ddp_bucket_cap_mb=3),
        "plugin over arguments": train(
            UnslothAcceleratorPlugin(gradient_sync="overlapped", find_unused_parameters=False),
            ddp_find_unused_parameters=True,
        ),
        "static graph": train(ddp_static_graph=True),
        "stands down": stands_down(),
        "two precisions": failure(make, fp16=True, bf16=True),
        "saving": save(),
    }
    write_result(OUT, result)
    train(fails=True, dataloader_num_workers=1)


if __name__ == "__main__":
    main()
