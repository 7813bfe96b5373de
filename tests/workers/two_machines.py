"""Trains on two machines with two ranks each: `two_machines.py OUT OPTIONS`.

OPTIONS is JSON: `seconds` that a step takes at least. Each rank writes OUT-<rank>.pid when it starts, OUT-<rank>.step
after each step, and at the end what it trained.
"""

import json
import os
import sys
import time
from pathlib import Path

from checkpoints import OUT, make, train
from start import RANK, write_result
from transformers import TrainerCallback

from unsloth_accel import UnslothAcceleratorPlugin


STALL_SECONDS = 20


class Progress(TrainerCallback):
    seconds = json.loads(sys.argv[2])["seconds"]

    def on_step_end(self, args, state, control, **kwargs):
        beside = Path(f"{OUT}-{RANK}.step.new")
        beside.write_text(str(state.global_step))
        beside.rename(f"{OUT}-{RANK}.step")
        time.sleep(self.seconds)


def main():
    Path(f"{OUT}-{RANK}.pid").write_text(json.dumps([os.getpid(), os.getppid()]))
    plugin = UnslothAcceleratorPlugin(resume="auto", stall_timeout=STALL_SECONDS)
    trainer = make(f"{OUT}.run", plugin=plugin, max_steps=40)
    trainer.add_callback(Progress())
    write_result(OUT, train(trainer))


if __name__ == "__main__":
    main()
