"""What ranks must hold in common, and a checkpoint with the run that goes on from it: `resume_agreement.py OUT`.

On three ranks. Without Unsloth it starts fast.
"""

import random
import sys
from pathlib import Path

import torch
from accelerate.data_loader import get_sampler
from datasets import Dataset
from start import RANK, failure, write_result
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments, default_data_collator

from unsloth_accel import UnslothAcceleratedTrainerMixin, UnslothAcceleratorPlugin


(OUT,) = sys.argv[1:]
AUTO = UnslothAcceleratorPlugin(resume="auto")
WRITTEN = f"{OUT}.written/checkpoint-2"


class AcceleratedTrainer(UnslothAcceleratedTrainerMixin, Trainer):
    on_load = staticmethod(lambda optimizer: None)

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        self.on_load(self.optimizer)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, x):
        return {"loss": self.second(self.first(x)).pow(2).mean()}


class Collator:
    """Its rows are those of transformers' own."""

    def __init__(self, padding_free):
        self.padding_free = padding_free

    def __call__(self, rows):
        return default_data_collator(rows)


class AfterStep(TrainerCallback):
    def __init__(self, act):
        self.act = act

    def on_step_end(self, args, state, control, model, optimizer, **kwargs):
        if state.global_step == 2:
            self.act(model, optimizer)


def rows(count=24, changed=None):
    draw = random.Random(0)
    values = [[draw.random() for _ in range(4)] for _ in range(count)]
    if changed is not None:
        values[changed][0] += 1
    return Dataset.from_list([{"x": value} for value in values])


def make(name, *, plugin=None, data=None, collator=default_data_collator, after_step=None, on_load=None, **arguments):
    """Two steps of twelve rows, of which the last is saved."""
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 2, "save_steps": 2}
    options |= {"optim": "adamw_torch", "learning_rate": 0.05, "use_cpu": True, "report_to": "none", "seed": 7}
    options |= {"remove_unused_columns": False, "disable_tqdm": True}
    trainer = AcceleratedTrainer(
        Net(),
        TrainingArguments(f"{OUT}.{name}", **options | arguments),
        collator,
        data or rows(),
        callbacks=[AfterStep(after_step)] if after_step else [],
        plugin=plugin or UnslothAcceleratorPlugin(plan="keep"),
    )
    if on_load is not None:
        trainer.on_load = on_load
    return trainer


def on_rank(odd, theirs, others):
    return theirs if odd == RANK else others


def install_other_version(folder):
    """As another environment would: a package's metadata lie before those that are installed."""
    metadata = Path(folder, "peft-0.0.1.dist-info")
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: peft\nVersion: 0.0.1\n")
    sys.path.insert(0, str(folder))


def other_version():
    folder = f"{OUT}.packages"
    if RANK == 0:
        install_other_version(folder)
    found = failure(make("versions").train)
    if RANK == 0:
        sys.path.remove(folder)
    return found


def other_seed():
    trainer = make("seed")
    torch.manual_seed(RANK)  # as some scripts do for dropout
    return failure(trainer.train)


@torch.no_grad()
def flip(tensor):
    """The last bit of its first number."""
    tensor.view(torch.int32).view(-1)[0] ^= 1


def flip_weight(model, optimizer):
    flip(model.second.weight)


def flip_moment(model, optimizer):
    flip(optimizer.state[model.first.weight]["exp_avg"])


def flip_loaded(optimizer):
    flip(optimizer.state[optimizer.param_groups[0]["params"][0]]["exp_avg_sq"])


def saved_after(name, act):
    found = failure(make(name, after_step=on_rank(1, act, None), max_steps=3).train)
    return [found, Path(f"{OUT}.{name}", "checkpoint-2").exists()]


def started():
    """What is compared before training begins; what may differ is trained."""
    return {
        "allowed": failure(make("allowed", run_name=f"rank {RANK}", disable_tqdm=RANK != 0).train),
        "arguments": failure(make("arguments", learning_rate=on_rank(1, 0.1, 0.05)).train),
        "rows": failure(make("rows", data=rows(on_rank(2, 23, 24))).train),
        "content": failure(make("content", data=rows(changed=on_rank(2, 5, None))).train),
        "versions": other_version(),
        "collator": failure(make("collator", collator=Collator(RANK == 2)).train),
        "class": failure(make("class", collator=on_rank(0, Collator(False), default_data_collator)).train),
        "path": failure(make("path").train, on_rank(1, WRITTEN, None)),
    }


def trained():
    """What is compared in `train`: the ranks have failed then, so these come last, and none is trained to its end."""
    return {
        "seed": other_seed(),
        "weights": saved_after("weights", flip_weight),
        "optimizer": saved_after("optimizer", flip_moment),
        "loaded": failure(make("loaded", on_load=on_rank(2, flip_loaded, None), max_steps=4).train, WRITTEN),
        "epoch": resume_other_epoch(),
    }


def go_on(name, **changes):
    trainer = make(name, max_steps=3, **changes)
    found = failure(trainer.train, WRITTEN)
    loader = trainer.callback_handler.train_dataloader
    return {
        "error": found,
        "steps": trainer.state.global_step,
        "accumulation": trainer.args.gradient_accumulation_steps,
        "seed": loader and get_sampler(loader).initial_seed,
    }


def resumed():
    """From a checkpoint that was written with twelve rows a step."""
    one_row = {"per_device_train_batch_size": 1}
    return {
        "same": go_on("same"),
        "other accumulation": go_on("accumulation", **one_row),
        "automatic": go_on("automatic", plugin=AUTO, **one_row),
        "too large": go_on("large", plugin=AUTO, per_device_train_batch_size=3),
        "other rows, asked for": go_on("skip", ignore_data_skip=True, data=rows(changed=0), **one_row),
        "other data": go_on("data", data=rows(changed=0)),
        "fewer data": go_on("fewer", data=rows(20)),
        "other seed": go_on("other_seed", seed=8),
        "grouped": go_on(
            "grouped", train_sampling_strategy="group_by_length", gradient_accumulation_steps=4, **one_row
        ),
    }


def write_checkpoints():
    """26 rows are two steps and a rest of two rows: dropped, where three ranks want two rows each at once."""
    dropped = make("dropped", data=rows(26), dataloader_drop_last=True)
    return [failure(make("written").train), failure(dropped.train)]


def resume_other_epoch():
    changes = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "max_steps": 4}
    return failure(make("other_epoch", data=rows(26), **changes).train, f"{OUT}.dropped/checkpoint-2")


if __name__ == "__main__":
    write_result(OUT, {"written": write_checkpoints(), "resumed": resumed(), **started(), **trained()})
