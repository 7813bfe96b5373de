"""What is logged and written of each step: `step_metrics.py MODEL OUT CASE [CASE ...]`, a JSON line a case.

Real Unsloth. Other than in `users_code`, on one rank there are accelerated trainers, too.
"""

import signal
import sys
import time
from functools import partial
from pathlib import Path


from agreed_stop import Asks, Signals  # isort: skip # it imports Unsloth first
import torch
from cases import WORLD_SIZE, of_all_ranks, report
from start import RANK
from transformers import TrainerCallback
from trl import SFTTrainer
from users_code import make

from unsloth_accel import accelerated


OUT = Path(sys.argv[2])
LAST = WORLD_SIZE - 1
SLOW_SECONDS = 0.2


class Watched(SFTTrainer):
    """Counts by itself what it is given to compute in each step, and what the ranks exchange where it logs."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.tokens, self.computed, self.exchanged = [], [], []

    def get_batch_samples(self, *args, **kwargs):
        batches, items = super().get_batch_samples(*args, **kwargs)
        self.tokens.append(sum(int(batch["attention_mask"].sum()) for batch in batches))
        self.computed.append(sum(batch["input_ids"].shape[0] * batch["input_ids"].shape[1] for batch in batches))
        return batches, items

    def log(self, logs, start_time=None):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            super().log(logs, start_time)
        self.exchanged += [event.name for event in profile.events() if event.name.startswith("c10d::")]


class LateRank(TrainerCallback):
    """The last rank comes late in each step, and evaluation takes long; notes when training began."""

    def __init__(self):
        self.began, self.evaluated = 0.0, 0.0

    def on_step_begin(self, args, state, control, **kwargs):
        self.began = self.began or time.time()
        time.sleep(SLOW_SECONDS if RANK == LAST else 0)

    def on_evaluate(self, args, state, control, **kwargs):
        began = time.perf_counter()
        time.sleep(5 * SLOW_SECONDS)
        self.evaluated += time.perf_counter() - began


def made(case, path, callback, **arguments):
    trainer = make(path, Watched, callbacks=[callback], **arguments)
    trainer.args.output_dir = f"{OUT}.{case}"
    return trainer


def seen(case, trainer):
    file = Path(f"{OUT}.{case}") / "metrics.jsonl"
    return {
        "history": trainer.state.log_history,
        "lines": file.read_text().splitlines() if file.exists() else None,
        "tokens": list(zip(*of_all_ranks(trainer.tokens), strict=True)),
        "computed": list(zip(*of_all_ranks(trainer.computed), strict=True)),
        "exchanged": of_all_ranks(trainer.exchanged),
        "files": [str(file.relative_to(OUT.parent)) for file in OUT.parent.rglob("metrics.jsonl")],
    }


def trained(case, path):
    """Evaluates before the first step, logs and evaluates every other step; evaluates again when training is over.

    Each rank has a folder of its own, as where a time stamp is in its name. That is no fault as long as none saves.
    """
    callback = LateRank()
    settings = {"gradient_accumulation_steps": 2, "logging_steps": 2}
    settings |= {"eval_strategy": "steps", "eval_steps": 2, "eval_on_start": True}
    trainer = made(case, path, callback, **settings)
    trainer.args.output_dir += f".of-rank-{RANK}" if RANK else ""
    trainer.train()
    trainer.evaluate()
    trainer.record_event("plan", plan={})
    return {**seen(case, trainer), "began": callback.began, "evaluated": callback.evaluated}


def alone(case, path, trainer_class):
    trainer = make(path, trainer_class)
    trainer.train()
    trainer.evaluate()
    return {"history": trainer.state.log_history, "files": list(map(str, OUT.parent.rglob("metrics.jsonl")))}


def asked(case, path):
    """A callback on one rank stops it; an event of the user's is written before."""
    trainer = made(case, path, Asks("should_training_stop"), logging_steps=1)
    trainer.add_callback(Notes(trainer))
    trainer.train()
    return seen(case, trainer)


class Notes(TrainerCallback):
    def __init__(self, trainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.record_event("plan", plan={"pieces": 1})


def stopped(case, path):
    """By a signal to one rank; then half a line is left, and the run goes on."""
    trainer = made(case, path, Signals(signal.SIGTERM))
    try:
        trainer.train()
    except SystemExit as left:
        code = left.code
    if RANK == 0:
        with (Path(f"{OUT}.{case}") / "metrics.jsonl").open("a") as file:
            file.write('{"event": "step", "st')
    trainer = made(case, path, Asks())
    trainer.train(resume_from_checkpoint=True)
    return {**seen(case, trainer), "code": code}


CASES = {
    "trained": trained,
    "asked": asked,
    "stopped": stopped,
    "one rank, TRL's": partial(alone, trainer_class=SFTTrainer),
    "one rank, ours": partial(alone, trainer_class=accelerated(SFTTrainer)),
}


def main() -> None:
    path, _, *cases = sys.argv[1:]
    for case in cases:
        report(OUT, {"case": case, "world_size": WORLD_SIZE}, partial(CASES[case], case, path))


if __name__ == "__main__":
    main()
