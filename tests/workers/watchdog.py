"""A rank that stops, loops or dies in step 2, or works long: `watchdog.py OUT CASE`. Starts fast, without Unsloth."""

import os
import signal
import sys
import time

import torch
from start import RANK, WORLD_SIZE, write_result
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from unsloth_accel import UnslothAcceleratedTrainerMixin, UnslothAcceleratorPlugin
from unsloth_accel.ranks.run_once import run_once
from unsloth_accel.recovery.verdict import BEAT_SECONDS


OUT, CASE = sys.argv[1:]
LAST = WORLD_SIZE - 1
STALL_TIMEOUT = 10.0
LONG = STALL_TIMEOUT + 3


class Net(nn.Module):
    config = None

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(8, 1)

    def forward(self, x):
        return {"loss": self.layer(x).pow(2).mean()}


class AcceleratedTrainer(UnslothAcceleratedTrainerMixin, Trainer):
    def compute_loss(self, model, inputs, *args, **kwargs):
        if RANK == LAST and model.training and self.state.global_step == 1:
            globals()[CASE]()
        return super().compute_loss(model, inputs, *args, **kwargs)


def tell():
    """Until a heartbeat has told where this rank is."""
    time.sleep(2 * BEAT_SECONDS)


def stopped():
    """At once: before the second heartbeat of the run."""
    os.kill(os.getpid(), signal.SIGSTOP)


def looping():
    while True:
        pass


def killed():
    tell()
    os.kill(os.getpid(), signal.SIGKILL)


def leaves():
    sys.exit(0)


def long_work():
    """Each micro-batch is a sign of life; together they take longer than the others would wait."""
    time.sleep(LONG / 3)


class LongWork(TrainerCallback):
    def on_evaluate(self, args, state, control, **kwargs):
        if RANK == 0:
            time.sleep(LONG)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            run_once(lambda: time.sleep(LONG), key="test", description="working long")


def collate(rows):
    return {"x": torch.stack([row["x"] for row in rows])}


if __name__ == "__main__":
    rows = [{"x": torch.full((8,), float(n))} for n in range(32)]
    more = {}
    if CASE == "long_work":
        more = {"gradient_accumulation_steps": 3, "eval_strategy": "steps", "eval_steps": 2}
    arguments = TrainingArguments(
        f"{OUT}.run", max_steps=4, use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True, **more
    )
    trainer = AcceleratedTrainer(
        Net(),
        arguments,
        collate,
        rows,
        rows[:4],
        callbacks=[LongWork()] if CASE == "long_work" else [],
        plugin=UnslothAcceleratorPlugin(stall_timeout=STALL_TIMEOUT),
    )
    trainer.train()
    write_result(OUT, {"step": trainer.state.global_step})
