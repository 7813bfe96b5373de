"""What two machines with two ranks each do where they share no output folder: `output_folders.py OUT FOLDERS`.

Each works in a folder of its own, FOLDERS/<machine>, but for the last case, and writes what came of each case.
"""

import os
import sys
from pathlib import Path

from checkpoints import AUTO, OUT, flip, folders, make, train
from start import RANK, failure, write_result
from stop_file import touch_stop_file
from transformers import TrainerCallback


MACHINE = RANK // 2


def on_each(folder):
    """Four steps, of which every second one is saved on each machine."""
    return make(folder, plugin=AUTO, max_steps=4, save_on_each_node=True)


class TouchesStop(TrainerCallback):
    """On the second machine alone."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 0 and RANK == 2:
            touch_stop_file(args.output_dir)


def stopped():
    """How it left, and with which checkpoints."""
    trainer = on_each("stopped")
    trainer.add_callback(TouchesStop())
    try:
        trainer.train()
    except SystemExit as left:
        return [left.code, sorted(os.listdir("stopped"))]


def main():
    os.chdir(Path(sys.argv[2], str(MACHINE)))
    seen = {"resumes": failure(make("resumes", plugin=AUTO).train)}
    best = make("best")
    best.args.load_best_model_at_end = True  # to set it, transformers wants an evaluation data set
    seen["best"] = failure(best.train)
    seen["alone"] = train(make("alone", max_steps=2))
    seen["weights"] = train(make("weights", max_steps=2, save_only_model=True))
    seen["each"] = train(on_each("each"))
    seen["files"] = sorted(os.listdir("each/checkpoint-4"))
    resumed = on_each("each")
    if RANK == 2:
        flip(Path("each/checkpoint-4/optimizer.pt"))
    resumed.accelerator.wait_for_everyone()
    seen["damaged"] = train(resumed)
    seen["stopped"] = stopped()
    os.chdir(sys.argv[2])
    shared = on_each("shared")
    seen["shared"] = failure(shared.train)
    shared.accelerator.wait_for_everyone()  # rank 0 removes what it left there
    seen["left"] = folders("shared") + [file for file in os.listdir("shared") if file.startswith(".")]
    write_result(OUT, seen)


if __name__ == "__main__":
    main()
