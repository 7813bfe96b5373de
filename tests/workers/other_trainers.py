"""Trains a tiny model with trainers other than SFT, and writes one JSON line per case from rank 0.

Usage: other_trainers.py MODEL OUT CASE [CASE ...], on one rank with python or on several with `accelerate launch`.

A CASE is a name of `CASES`, and may end in `/2` for two micro-batches per step; or it is `classes`, or `fail`, which
ends the job. What is trained, and with what, is in `trainer_cases.py`.
"""

import inspect
import sys
from functools import partial
from pathlib import Path


from trainer_cases import CASES, Gathering, arguments, language_model, of, pairs  # isort: skip  # imports Unsloth
import counting_tokenizer
import torch
import trl
import unsloth
from cases import RANK, WORLD_SIZE, of_all_ranks, report, steps_logged
from start import failure
from transformers.training_args import OptimizerNames

from unsloth_accel import accelerated


def fail(path, folder):
    """Rank 1 fails in its second step, before TRL gathers the metrics of its micro-batch."""

    class Failing(trl.DPOTrainer):
        def compute_loss(self, *args, **kwargs):
            if RANK == 1 and self.state.global_step == 1:
                raise ValueError("only rank 1 has this pair")
            return super().compute_loss(*args, **kwargs)

    model, tokenizer = language_model(path)
    args = arguments(trl.DPOConfig, folder, 1)
    of(Failing)(model=model, args=args, train_dataset=pairs(), processing_class=tokenizer).train()


# What stands before the arguments of a trainer, by position.
BEFORE_ARGUMENTS = {
    "SFT": [None],
    "DPO": [None, None],
    "KTO": [None, None],
    "Reward": [None],
    "GRPO": [None, len],
}


class Early(unsloth.UnslothTrainer.__base__):
    """Of the class that `trl.SFTTrainer` was before Unsloth; without a GPU, that of today derives from it."""


def refused(folder):
    """How each trainer refuses arguments, by its name; and a class that derives from a replaced one."""
    found = {"early": failure(accelerated, Early)}
    for name, before in BEFORE_ARGUMENTS.items():
        trainer_class = accelerated(getattr(trl, f"{name}Trainer"))
        config_class = getattr(trl, f"{name}Config")
        finding, empty, inside = (arguments(config_class, folder, 1) for _ in range(3))
        finding.auto_find_batch_size = True  # afterwards, because some configs refuse it, or calculate with it, alone
        empty.per_device_train_batch_size = 0
        inside.optim = OptimizerNames.LOMO
        found[name] = [failure(trainer_class, *before, given) for given in (finding, empty, inside)]
    return found


def classes(folder):
    """What `accelerated` makes of classes, and what those refuse."""
    users = accelerated(Gathering)
    return {
        "same": [accelerated(cls) is accelerated(cls) for cls in (trl.SFTTrainer, trl.DPOTrainer, Gathering)],
        "mro": [cls.__name__ for cls in users.__mro__],
        "shown": list(inspect.signature(users).parameters),
        "refused": of_all_ranks(refused(folder)),
    }


def of_a_test_or_ours(cls):
    return cls.__module__.partition(".")[0] in ("__main__", "trainer_cases", "unsloth_accel")


def train(path, case, folder):
    if case == "classes":
        return classes(folder)
    name, _, accumulation = case.partition("/")
    counting_tokenizer.rows = 0
    trainer = CASES[name](path, folder, int(accumulation or 1))
    tokenised = counting_tokenizer.rows
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    before = torch.cat([p.detach().cpu().reshape(-1) for p in trained])
    trainer.train()
    weights = torch.cat([p.detach().cpu().reshape(-1) for p in trained])
    every_rank = of_all_ranks(weights.tolist())
    return {
        "class": type(trainer).__name__,
        "library_class": next(cls.__name__ for cls in type(trainer).__mro__ if not of_a_test_or_ours(cls)),
        "logs": steps_logged(trainer),
        "weights": weights.tolist(),
        "moved": (weights - before).abs().max().item(),
        "ranks_agree": all(rank == every_rank[0] for rank in every_rank),
        "learning_rates": sorted({group["lr"] for group in trainer.optimizer.param_groups}),
        "tokenised": of_all_ranks(tokenised),
        "rewards": of_all_ranks(getattr(trainer, "rewards_of_this_rank", [])),
        "tokens": [[report.values["tokens"] for report in step] for step in getattr(trainer, "step_reports", [])],
        "has_reference_model": getattr(trainer, "ref_model", None) is not None,
        "ranks_seen": getattr(trainer, "ranks_seen", []),
    }


def main() -> None:
    path, out, *cases = sys.argv[1:]
    for case in cases:
        if case == "fail":
            fail(path, Path(out).with_suffix(".run"))
        result = {"case": case, "world_size": WORLD_SIZE}
        report(Path(out), result, partial(train, path, case, Path(out).with_suffix(".run")))


if __name__ == "__main__":
    main()
