"""One training step after imports in a given order: `import_order.py trl|unsloth|unsloth_accel MODEL OUT`.

One process. Writes to OUT what the drop-in is, and what bad input gives.
"""

import importlib
import inspect
import json
import sys
from pathlib import Path


FIRST, MODEL, OUT = sys.argv[1:]
first = importlib.import_module(FIRST)
early = first.SFTTrainer if FIRST == "trl" else None

from unsloth_accel import UnslothAcceleratedSFTTrainer, UnslothAcceleratedTrainerMixin, accelerated  # isort: skip
import trl
from datasets import Dataset
from start import failure, tiny_lora
from transformers import Trainer


def name(cls):
    return f"{cls.__module__}.{cls.__qualname__}"


def trainer(kind, model, tokenizer, **arguments):
    arguments = {"max_steps": 1, "per_device_train_batch_size": 2} | arguments
    config = trl.SFTConfig(
        output_dir=f"{OUT}.run", report_to="none", save_strategy="no", logging_steps=1, seed=3, **arguments
    )
    rows = Dataset.from_dict({"text": [f"Row {index} of the data" for index in range(8)]})
    return kind(model=model, processing_class=tokenizer, args=config, train_dataset=rows)


def signatures(ours, theirs):
    """Name, kind and default of each parameter."""
    return [
        [[p.name, p.kind.name, repr(p.default)] for p in inspect.signature(cls).parameters.values()]
        for cls in (ours, theirs)
    ]


def relied_on():
    """The parameters of what the mixin overrides."""
    owners = {
        "_prepare_for_training": Trainer,
        "_maybe_log_save_evaluate": Trainer,
        "_finalize_training": Trainer,
        "get_batch_samples": Trainer,
        "train": Trainer,
        "_save_checkpoint": Trainer,
        "_get_output_dir": Trainer,
        "_push_from_checkpoint": Trainer,
        "save_model": Trainer,
        "_save": Trainer,
        "training_step": Trainer,
        "_prepare_dataset": trl.SFTTrainer,
        "compute_loss": trl.SFTTrainer,
    }
    return {method: list(inspect.signature(getattr(cls, method)).parameters) for method, cls in owners.items()}


class Mine(trl.DPOTrainer):
    """A user's own subclass."""


def wrapping():
    """What `accelerated` makes of a trainer of TRL, of a user's, of one that has the mixin, and of anything else."""
    dpo, mine = accelerated(trl.DPOTrainer), accelerated(Mine)
    return {
        "is a subclass with the mixin": [
            issubclass(dpo, trl.DPOTrainer) and issubclass(dpo, UnslothAcceleratedTrainerMixin),
            issubclass(mine, Mine) and issubclass(mine, UnslothAcceleratedTrainerMixin),
        ],
        "name": dpo.__name__,
        "again": accelerated(dpo) is dpo,
        "takes plugin": "plugin" in inspect.signature(dpo).parameters,
        "refused": [failure(accelerated, what) for what in (int, "SFTTrainer", trl.DPOConfig)],
    }


def main():
    model, tokenizer = tiny_lora(MODEL)
    base = UnslothAcceleratedSFTTrainer.__bases__[1]
    kinds = {"drop-in": UnslothAcceleratedSFTTrainer}
    result = {
        "mro": [name(cls) for cls in UnslothAcceleratedSFTTrainer.__mro__],
        "base is what trl has now": base is trl.SFTTrainer,
        "base is Unsloth's": "unsloth" in inspect.getsourcefile(base.__init__),
    }
    if early is not None:
        kinds["accelerated"] = accelerated(early)
        result["early is stock"] = "unsloth" not in inspect.getsourcefile(early.__init__)
        result["looked up again"] = kinds["accelerated"].__bases__[1] is trl.SFTTrainer
        result["signatures"] = signatures(type("OverStock", (UnslothAcceleratedTrainerMixin, early), {}), early)
    if FIRST == "unsloth_accel":
        result |= {"relied on": relied_on(), "wrapping": wrapping()}
        # Without a GPU, Unsloth's class takes *args and **kwargs for the one of TRL that it derives from.
        result["signatures"] = signatures(UnslothAcceleratedSFTTrainer, trl.SFTTrainer.__base__)
        result["batch 0"] = failure(
            trainer, UnslothAcceleratedSFTTrainer, model, tokenizer, per_device_train_batch_size=0
        )
        nothing = trl.SFTConfig(f"{OUT}.run", per_device_train_batch_size=0, report_to="none")
        result["batch 0 of no model"] = failure(UnslothAcceleratedSFTTrainer, None, nothing)
        rewards = accelerated(trl.RewardTrainer)
        config = trl.RewardConfig(f"{OUT}.run", report_to="none")
        result["rewards"] = [failure(rewards, model, config), failure(rewards, model=model, args=config)]
        result["unknown argument"] = failure(UnslothAcceleratedSFTTrainer, model=model, plugins=None)
    for key, kind in kinds.items():
        made = trainer(kind, *tiny_lora(MODEL))
        made.train()
        result[f"loss of {key}"] = made.state.log_history[0]["loss"]
    Path(OUT).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
