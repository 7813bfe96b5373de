"""A run with real Unsloth in which a rank meets a fault: `faults.py MODEL RUN [FAULT PHASE RANK]`.

With a fault, rank RANK does it to itself in step 4 of 6, where the run has a checkpoint of step 2. Without one, the
run goes on from the newest complete checkpoint in RUN, or begins, and each rank writes what it ended with to
RUN.weights-<rank>. Several runs, `faults.py MODEL go_on RUN ...`, go on one after the other in the same processes.
"""

import json
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path


from start import RANK, WORLD_SIZE, failure, tiny_lora  # isort: skip
from unsloth_accel import UnslothAcceleratedSFTTrainer, UnslothAcceleratorPlugin  # isort: skip # it imports Unsloth
import torch
import torch.distributed as dist
from cases import COMPARABLE, SGD
from datasets import Dataset
from transformers import TrainerCallback
from trl import SFTConfig


MODEL, *MORE = sys.argv[1:]
ATTEMPT = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
STEP, STEPS = 4, 6
GLOBAL_BATCH = 4
SIGNALS = {"kill": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGSTOP": signal.SIGSTOP}


class Fault:
    """Done once, in the first attempt, in its phase of step 4, on its rank."""

    def __init__(self, run, kind, phase, rank):
        self.run, self.kind, self.phase, self.rank = run, kind, phase, int(rank)
        self.trainer = None

    def meet(self, phase, step):
        """The run is in a phase of a step."""
        if (phase, step, RANK, ATTEMPT) == (self.phase, STEP, self.rank, 0):
            self.phase = None
            Path(f"{self.run}.fault").write_text(str(time.time()))
            self.do()

    def do(self):
        if self.kind in SIGNALS:
            os.kill(os.getpid(), SIGNALS[self.kind])
        elif self.kind == "SIGTERM_launcher":
            os.kill(os.getppid(), signal.SIGTERM)
        else:
            getattr(self, self.kind)()

    def loop(self):
        while True:
            pass

    def flipped_bit(self):
        weight = next(p for p in self.trainer.model.parameters() if p.requires_grad)
        weight.data.view(torch.int32)[0, 0] ^= 1

    def full_disk(self):
        """Its disk is."""

    def clock_jump(self):
        """Of Python's clocks that show the date."""
        now = time.time
        time.time = lambda: now() + 86400


class Trainer(UnslothAcceleratedSFTTrainer):
    fault = Fault(None, "none", None, -1)

    def _save_optimizer_and_scheduler(self, output_dir):
        self.fault.meet("checkpoint write", self.state.global_step)
        super()._save_optimizer_and_scheduler(output_dir)

    def _save_rng_state(self, output_dir):
        super()._save_rng_state(output_dir)
        self.fault.meet("checkpoint written", self.state.global_step)


class Phases(TrainerCallback):
    def __init__(self, fault):
        self.fault = fault

    def on_step_begin(self, args, state, control, **kwargs):
        self.fault.meet("step", state.global_step + 1)

    def on_prediction_step(self, args, state, control, **kwargs):
        self.fault.meet("evaluation", state.global_step)


def watch_phases(trainer, fault):
    """Has the fault met where the trainer has no event."""
    step = lambda: trainer.state.global_step + 1  # noqa: E731
    all_reduce = dist.all_reduce

    def reduce(*args, **kwargs):
        if trainer._run is not None and trainer._run.reductions_begun > trainer._computing_since:
            fault.meet("reduction", step())
        return all_reduce(*args, **kwargs)

    def forward(model, inputs):
        if model.training:
            fault.meet("forward", step())

    def at_rename(event, arguments):
        if event == "os.rename" and os.path.basename(arguments[1]) == f"checkpoint-{STEP}":
            fault.meet("rename", STEP)

    dist.all_reduce = reduce
    sys.addaudithook(at_rename)
    trainer.create_optimizer().register_step_pre_hook(lambda *_: fault.meet("optimizer step", step()))
    trainer.model.register_forward_pre_hook(forward)


def rows(count, more=""):
    return Dataset.from_list([{"text": f"Row {n} of the data.{more} " * (1 + n * 7 % 5)} for n in range(count)])


def make(run, fault, more=""):
    model, tokenizer = tiny_lora(MODEL, use_gradient_checkpointing=False)
    settings = {**COMPARABLE, **SGD, "bf16": False, "max_steps": STEPS, "max_length": 64}
    settings |= {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": STEP}
    settings |= {"per_device_train_batch_size": GLOBAL_BATCH // WORLD_SIZE}
    trainer = Trainer(
        model=model,
        processing_class=tokenizer,
        args=SFTConfig(run, **settings),
        train_dataset=rows(32, more),
        eval_dataset=rows(8),
        callbacks=[Phases(fault)],
        plugin=UnslothAcceleratorPlugin(resume="auto"),
    )
    trainer.fault, fault.trainer = fault, trainer
    return trainer


def merge(trainer, run, fault):
    """At the end, which counts as step 4 for a fault in it."""
    folder = f"{run}.merged"

    def at_open(event, arguments):
        if event == "open" and str(arguments[0]).startswith(folder):
            fault.meet("merge", STEP)

    sys.addaudithook(at_open)
    if RANK != 0:
        fault.meet("merge", STEP)
    trainer.model.save_pretrained_merged(folder, trainer.processing_class)


def go(run, fault, more=""):
    trainer = make(run, fault, more)
    if fault.run is not None:
        watch_phases(trainer, fault)
    trainer.train()
    if fault.phase == "merge":
        merge(trainer, run, fault)
    weights = torch.cat([p.detach().reshape(-1) for p in trainer.model.parameters() if p.requires_grad])
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    moved = [(entry["learning_rate"], entry["grad_norm"]) for entry in trainer.state.log_history if "loss" in entry]
    seen = {"step": trainer.state.global_step, "losses": losses, "moved": moved, "weights": weights.tolist()}
    Path(f"{run}.weights-{RANK}").write_text(json.dumps(seen))


def go_on(run):
    """Another run's fault is none of ours: what goes wrong here is told, and the next run begins."""
    more = " It has changed." if run.endswith("changed_data") else ""
    told = failure(partial(go, run, Fault(None, "none", None, -1), more))
    if told is not None:
        Path(f"{run}.weights-{RANK}").write_text(json.dumps({"error": told}))


def main() -> None:
    if MORE[0] == "go_on":
        for run in MORE[1:]:
            go_on(run)
    elif len(MORE) == 1:
        go(MORE[0], Fault(None, "none", None, -1))
    else:
        go(MORE[0], Fault(*MORE))


if __name__ == "__main__":
    main()
