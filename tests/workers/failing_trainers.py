"""A trainer that gathers within a step, whose last rank fails in the second one: `failing_trainers.py MODEL OUT CASE`.

Real Unsloth. The other ranks cannot be met in the step's reduction: they wait in the gather before it.
"""

import sys


from users_code import Gathers, make  # isort: skip # it imports Unsloth first
from start import RANK, WORLD_SIZE
from trl import SFTTrainer


class FailsInItsSecondStep:
    """A hook of the model, which sees four micro-batches in two steps."""

    calls = 0

    def __call__(self, *_):
        self.calls += 1
        if RANK == WORLD_SIZE - 1 and self.calls == 3:
            raise ValueError("only the last rank has this row")


CASES = {
    "counts_tokens": (SFTTrainer, {"include_num_input_tokens_seen": "all"}),
    "gathers": (Gathers, {}),
}


def main(path, _, case):
    trainer_class, arguments = CASES[case]
    trainer = make(path, trainer_class, gradient_accumulation_steps=2, **arguments)
    trainer.model.register_forward_pre_hook(FailsInItsSecondStep())
    trainer.train()


if __name__ == "__main__":
    main(*sys.argv[1:])
