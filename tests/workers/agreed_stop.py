"""One rank is asked to stop, save or evaluate: `agreed_stop.py MODEL OUT CASE [CASE ...]`, a JSON line a case.

Real Unsloth, real signals. A case that is `resumed` goes on after its exit, from its checkpoint; after
any other that a signal or the stop file ends the process does end.
"""

import json
import os
import random
import select
import signal
import sys
import time
from functools import partial
from pathlib import Path


from users_code import make  # isort: skip # it imports Unsloth first
import torch
import torch.distributed as dist
from cases import between_ranks, of_all_ranks, report, steps_logged
from start import RANK, WORLD_SIZE
from stop_file import touch_stop_file
from transformers import TrainerCallback

from unsloth_accel.recovery.signals import SAME_SIGNAL_SECONDS


OUT = Path(sys.argv[2])
LAST = WORLD_SIZE - 1


class Asks(TrainerCallback):
    """In an event of a step, on some ranks, sets a switch of `control`; notes when its rank saved and evaluated."""

    def __init__(self, switch=None, *, step=2, event="on_step_end", ranks=(LAST,)):
        self.saved, self.evaluated = [], []
        if RANK in ranks and switch is not None:
            setattr(self, event, partial(self._ask, switch, step))

    def _ask(self, switch, step, args, state, control, **kwargs):
        if state.global_step == step:
            setattr(control, switch, True)

    def on_save(self, args, state, control, **kwargs):
        self.saved.append(state.global_step)

    def on_evaluate(self, args, state, control, **kwargs):
        self.evaluated.append(state.global_step)


class StopsAfterEvaluation(Asks):
    """As early stopping: on all ranks."""

    def on_evaluate(self, args, state, control, **kwargs):
        super().on_evaluate(args, state, control, **kwargs)
        control.should_training_stop = True


class AsksAtRandom(Asks):
    """Each rank wishes something else, at some of the events of a step or an epoch."""

    def __init__(self):
        super().__init__()
        draws = random.Random(RANK)
        for event in ("on_epoch_begin", "on_step_begin", "on_optimizer_step", "on_step_end", "on_epoch_end"):
            setattr(self, event, partial(self._ask_at_random, draws))

    def _ask_at_random(self, draws, args, state, control, **kwargs):
        if draws.random() < 0.1:
            switch = draws.choice(["should_save", "should_evaluate", "should_log", "should_epoch_stop"])
            setattr(control, switch, True)


class Signals(Asks):
    """Signals its own process in the second step, on the last rank."""

    def __init__(self, *numbers):
        super().__init__()
        self._numbers, self.sent = numbers, 0

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 1 and RANK == LAST:
            for count, number in enumerate(self._numbers):
                time.sleep(SAME_SIGNAL_SECONDS * 1.2 if count else 0)
                self.sent += 1
                os.kill(os.getpid(), number)


class TouchesStop(Asks):
    """As a user who makes the file in the second step."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 1 and RANK == LAST:
            touch_stop_file(args.output_dir)


def trainer_of(case, path, callback, **arguments):
    trainer = make(path, callbacks=[callback], **arguments)
    trainer.args.output_dir = f"{OUT}.{case}"
    return trainer


def seen(trainer, callback):
    weights = torch.cat([p.detach().reshape(-1) for p in trainer.model.parameters() if p.requires_grad])
    return {
        "steps": of_all_ranks(trainer.state.global_step),
        "saved": of_all_ranks(callback.saved),
        "evaluated": of_all_ranks(callback.evaluated),
        "logs": steps_logged(trainer),
        "weights": weights.tolist(),
        "between_ranks": between_ranks(weights),
    }


def asked(make_callback, case, path, **arguments):
    callback = make_callback()
    trainer = trainer_of(case, path, callback, **arguments)
    trainer.train()
    return seen(trainer, callback)


def resumed(make_callback, case, path, **arguments):
    """Stopped from outside, then trained to the end in a second run."""
    callback = make_callback()
    stopped = trainer_of(case, path, callback, **arguments)
    before = signal.getsignal(signal.SIGTERM)
    try:
        stopped.train()
        code = None
    except SystemExit as left:
        code = left.code
    at_stop = {f"stopped_{key}": value for key, value in seen(stopped, callback).items()}
    restored = signal.getsignal(signal.SIGTERM) is before
    callback = Asks()
    trainer = trainer_of(case, path, callback, **arguments)
    trainer.train(resume_from_checkpoint=True)
    return {**at_stop, "codes": of_all_ranks(code), "restored": of_all_ranks(restored), **seen(trainer, callback)}


class SignalsLauncher(Asks):
    """As a scheduler that signals the launcher, which forwards it, and the ranks: the last rank gets it twice."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 1 and RANK == LAST:
            arrived, written_on_arrival = os.pipe2(os.O_NONBLOCK)
            signal.set_wakeup_fd(written_on_arrival)
            os.kill(os.getppid(), signal.SIGUSR1)
            select.select([arrived], [], [], 60)
            signal.set_wakeup_fd(-1)
            os.kill(os.getpid(), signal.SIGUSR1)


def left(make_callback, case, path):
    """Nothing catches the exit; what is in `finally` runs."""
    trainer = trainer_of(case, path, make_callback())
    try:
        trainer.train()
    finally:
        how = type(sys.exc_info()[1]).__name__, getattr(sys.exc_info()[1], "code", None), trainer.state.global_step
        Path(f"{OUT}.{case}-{RANK}").write_text(json.dumps(how))
        dist.barrier()  # the launcher ends the rank that is later


def signalled_twice(case, path):
    """The handler from before tells by the exit code which of the signals it got."""
    callback = Signals(signal.SIGTERM, signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(callback.sent))
    trainer_of(case, path, callback).train()


EVALUATES = {"eval_strategy": "steps", "eval_steps": 2}
RARELY_LOGS = {"logging_steps": 10}
CASES = {
    "undisturbed": partial(asked, Asks),
    "stops": partial(asked, partial(Asks, "should_training_stop")),
    "stops_rarely_logging": partial(asked, partial(Asks, "should_training_stop", step=1), **RARELY_LOGS),
    "all_stop": partial(asked, partial(Asks, "should_training_stop", ranks=range(WORLD_SIZE)), **RARELY_LOGS),
    "all_stop_early": partial(asked, StopsAfterEvaluation, **EVALUATES),
    "saves": partial(asked, partial(Asks, "should_save")),
    "saves_at_the_end": partial(asked, partial(Asks, "should_save", step=4)),
    "evaluates": partial(asked, partial(Asks, "should_evaluate")),
    "logs": partial(asked, partial(Asks, "should_log"), **RARELY_LOGS),
    "random": partial(asked, AsksAtRandom, **RARELY_LOGS, max_steps=40),
    "SIGTERM": partial(resumed, partial(Signals, signal.SIGTERM)),
    "SIGUSR1": partial(resumed, partial(Signals, signal.SIGUSR1), **RARELY_LOGS),
    "SIGTERM_evaluating": partial(resumed, partial(Signals, signal.SIGTERM), **EVALUATES),
    "stop_file": partial(resumed, TouchesStop, **RARELY_LOGS),
    "left_by_stop_file": partial(left, TouchesStop),
    "left_by_signal": partial(left, partial(Signals, signal.SIGTERM)),
    "launcher_signalled": partial(left, SignalsLauncher),
    "signalled_twice": signalled_twice,
}


def main() -> None:
    path, _, *cases = sys.argv[1:]
    for case in cases:
        report(OUT, {"case": case, "world_size": WORLD_SIZE}, partial(CASES[case], case, path))


if __name__ == "__main__":
    main()
