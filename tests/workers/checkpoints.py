"""Checkpoints of transformers' Trainer on two ranks, of which one is killed while it is written.

`checkpoints.py OUT RANK MOMENT` kills that rank at step 4: after the `weights`; when `all` it has to write is written;
or at the `rename`. `checkpoints.py OUT DISK` trains to the end, then the other cases. `checkpoints.py OUT`, on one
rank: what it writes with and without `resume`. Without Unsloth it starts fast.
"""

import json
import os
import random
import shutil
import signal
import sys
from functools import partial
from pathlib import Path

import torch
from start import RANK, failure, write_result
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from unsloth_accel import UnslothAcceleratedTrainerMixin, UnslothAcceleratorPlugin


OUT, *MORE = sys.argv[1:]
AUTO = UnslothAcceleratorPlugin(resume="auto")


class AcceleratedTrainer(UnslothAcceleratedTrainerMixin, Trainer):
    fault = None

    def _save_optimizer_and_scheduler(self, output_dir):
        self.die_at("weights")
        super()._save_optimizer_and_scheduler(output_dir)

    def _save_rng_state(self, output_dir):
        super()._save_rng_state(output_dir)
        self.die_at("all")

    def die_at(self, moment):
        if self.fault == (RANK, moment) and self.state.global_step == 4:
            os.kill(os.getpid(), signal.SIGKILL)


def die_at_rename(event, arguments):
    """As Python calls it before a rename."""
    if event == "os.rename" and os.path.basename(arguments[1]) == "checkpoint-4":
        os.kill(os.getpid(), signal.SIGKILL)


class Net(nn.Module):
    """Its dropout draws from the generator of each rank."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(32, 32), nn.Dropout(0.5), nn.Linear(32, 1))

    def forward(self, x):
        return {"loss": self.layers(x).pow(2).mean()}


class FirstStep(TrainerCallback):
    """After how many steps training began."""

    def on_step_begin(self, args, state, control, **kwargs):
        self.before = getattr(self, "before", state.global_step)


def collate(rows):
    return {"x": torch.stack([row["x"] for row in rows])}


def make(folder, kind=AcceleratedTrainer, plugin=None, **arguments):
    options = {"per_device_train_batch_size": 2, "max_steps": 6, "save_steps": 2, "logging_steps": 1, "data_seed": 7}
    options |= {"optim": "sgd", "learning_rate": 0.05, "lr_scheduler_type": "linear", "use_cpu": True}
    options |= {"report_to": "none", "remove_unused_columns": False, "disable_tqdm": True}
    draw = torch.Generator().manual_seed(0)
    rows = [{"x": torch.randn(32, generator=draw)} for _ in range(16)]  # an epoch has 4 steps on two ranks
    more = {} if plugin is None else {"plugin": plugin}
    trainer = kind(Net(), TrainingArguments(folder, **options | arguments), collate, rows, **more)
    torch.manual_seed(7 + RANK)  # so that each rank has a state of its own to save
    random.seed(7 + RANK)
    return trainer


class StoppedTrainer(AcceleratedTrainer):
    """Step 4 was the best when early stopping ends the run after step 6; meanwhile a signal comes to rank 1."""

    stops = True

    def evaluate(self, *args, **kwargs):
        step = self.state.global_step
        stops = self.stops and step == 6
        metrics = {"eval_loss": abs(step - 4.0)}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.control.should_training_stop = stops
        if stops and RANK == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return metrics


def train(trainer, *resume):
    first = FirstStep()
    trainer.add_callback(first)
    trainer.train(*resume)
    return {
        "before": getattr(first, "before", None),
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "weights": torch.cat([p.detach().reshape(-1) for p in trainer.model.parameters()]).tolist(),
        "torch": torch.get_rng_state().sum().item(),
        "python": random.random(),
        "folders": folders(trainer.args.output_dir),
    }


def folders(run):
    return sorted(path.name for path in Path(run).glob("checkpoint-*"))


def train_in_one_folder(fault=None):
    """Run after run, with a limit that would remove the checkpoint before."""
    trainer = make(f"{OUT}.run", plugin=AUTO, save_total_limit=1)
    trainer.fault = fault
    if fault == (RANK, "rename"):
        sys.addaudithook(die_at_rename)
    return train(trainer)


def flip(file):
    """One bit of it."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def resume_past_damage(folder):
    """The newest has a flipped bit; one of a later step was not finished."""
    if RANK == 0:
        flip(Path(folder, "checkpoint-6", "optimizer.pt"))
        Path(folder, "checkpoint-8.incomplete").mkdir()
    trainer = make(folder)
    trainer.accelerator.wait_for_everyone()
    return train(trainer, True)


def resume_stock():
    """What transformers itself wrote; its newest is gone."""
    folder = f"{OUT}.stock"
    stock = train(make(folder, Trainer))
    resumed = make(folder, plugin=AUTO)
    resumed.accelerator.wait_for_everyone()
    if RANK == 0:
        shutil.rmtree(Path(folder, "checkpoint-6"))
    return {"stock": stock, "resumed": train(resumed)}


class Best(TrainerCallback):
    """Each step is the best so far, as an evaluation would say."""

    def on_step_end(self, args, state, control, **kwargs):
        state.best_global_step = state.global_step


def best_of_all():
    trainer = make(f"{OUT}.best")
    trainer.add_callback(Best())
    trainer.train()
    written = Path(f"{OUT}.best", "checkpoint-6", "trainer_state.json")
    return [trainer.state.best_model_checkpoint, json.loads(written.read_text())["best_model_checkpoint"]]


def make_stopped(folder, **arguments):
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": False}
    steps = {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 4, "max_steps": 8}
    kind = partial(StoppedTrainer, eval_dataset=[{"x": torch.zeros(32)}])
    return make(folder, kind, AUTO, **best, **steps, **arguments)


def stopped_and_moved():
    """How the ranks leave and what is there then; and what is there when the run has gone on in another folder."""
    stopped = make_stopped(f"{OUT}.stopped", save_total_limit=1)
    try:
        stopped.train()
    except SystemExit as left:
        seen = [left.code, stopped.state.global_step, folders(f"{OUT}.stopped")]
    moved = make_stopped(f"{OUT}.moved", save_total_limit=2)
    moved.stops = False
    moved.accelerator.wait_for_everyone()
    if RANK == 0:
        os.rename(f"{OUT}.stopped", f"{OUT}.moved")
    moved.accelerator.wait_for_everyone()
    return {"stopped": seen, "moved": train(moved)["folders"], "best": moved.state.best_model_checkpoint}


def none_usable(folder):
    trainer = make(folder, plugin=AUTO)
    trainer.accelerator.wait_for_everyone()
    if RANK == 0:
        for checkpoint in folders(folder):
            flip(Path(folder, checkpoint, "training_args.bin"))
    return failure(trainer.train)


def on_two_ranks(disk):
    result = {"killed": train_in_one_folder(), "whole": train(make(f"{OUT}.whole"))}
    result |= {"damaged": resume_past_damage(f"{OUT}.whole"), "best": best_of_all(), **resume_stock()}
    result["finished"] = train(make(f"{OUT}.best"), True)
    result["none_usable"] = none_usable(f"{OUT}.best")
    result["stops"] = stopped_and_moved()
    result["nothing"] = failure(make(f"{OUT}.nothing").train, resume_from_checkpoint=True)
    if os.path.isdir(disk):
        result["full"] = [failure(make(disk).train), folders(disk)]
    write_result(OUT, result)


def on_one_rank():
    plain, stock, asked = (f"{OUT}.{name}" for name in ("plain", "stock", "asked"))
    runs = [train(make(plain)), train(make(stock, Trainer)), train(make(asked, plugin=AUTO))]
    shutil.rmtree(Path(asked, "checkpoint-6"))
    runs.append(train(make(asked, plugin=AUTO)))
    files = [sorted(os.listdir(Path(folder, "checkpoint-4"))) for folder in (plain, stock, asked)]
    forced = failure(make(asked, plugin=AUTO, max_steps=8).train, False)
    write_result(OUT, {"runs": runs, "files": files, "forced": forced})


if __name__ == "__main__":
    if len(MORE) == 2:
        train_in_one_folder((int(MORE[0]), MORE[1]))
    elif MORE:
        on_two_ranks(MORE[0])
    else:
        on_one_rank()
