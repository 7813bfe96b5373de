"""A trainer of which the last rank fails in its second step: `failing_trainers.py MODEL OUT CASE`. Real Unsloth.

Each rank writes OUT-<rank>.json before it leaves with its error.
"""

import sys


from users_code import Gathers, make  # isort: skip # it imports Unsloth first
from start import RANK, WORLD_SIZE, failure, write_result
from trl import SFTTrainer


class FailsInItsSecondStep:
    """A hook of the model, which sees four micro-batches in two steps."""

    calls = 0

    def __call__(self, *_):
        self.calls += 1
        if RANK == WORLD_SIZE - 1 and self.calls == 3:
            raise ValueError("only the last rank has this row")


CASES = {
    "plain": (SFTTrainer, {}),
    # What follows is collective within a step, so the others are not to be met in its reduction.
    "counts_tokens": (SFTTrainer, {"include_num_input_tokens_seen": "all"}),
    "gathers": (Gathers, {}),
}


def main(path, out, case):
    trainer_class, arguments = CASES[case]
    trainer = make(path, trainer_class, gradient_accumulation_steps=2, **arguments)
    trainer.model.register_forward_pre_hook(FailsInItsSecondStep())
    try:
        trainer.train()
    except RuntimeError as error:
        saved = failure(trainer.save_model, f"{out}.saved")
        write_result(out, {"error": type(error).__name__, "text": str(error), "saved": saved})
        raise


if __name__ == "__main__":
    main(*sys.argv[1:])
