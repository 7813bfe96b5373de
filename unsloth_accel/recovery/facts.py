"""What a rank knows of its run: what the ranks compare, and what the manifest of a checkpoint says."""

import sys
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments

_PACKAGES = ("unsloth_accel", "unsloth", "unsloth_zoo", "torch", "transformers", "trl", "accelerate", "peft")
# Arguments, by the beginning of their names, that may be those of one rank or machine: they change no step.
_OF_ONE_RANK = (
    "dataloader_num_workers",
    "dataloader_persistent_workers",
    "dataloader_prefetch_factor",
    "dataset_num_proc",
    "disable_tqdm",
    "hub_",
    "local_rank",
    "log_level",
    "logging_dir",
    "output_dir",
    "push_to_hub",
    "report_to",
    "run_name",
)


def run_facts(trainer: "Trainer", code: dict[str, str], data: dict[str, Any]) -> dict[str, Any]:
    """What the manifest says of the run.

    Args:
        trainer (`transformers.Trainer`): One that trains.
        code (`dict[str, str]`): The versions of what runs.
        data (`dict[str, Any]`): The fingerprint of its data.
    """
    args = trainer.args
    return {
        "global_step": trainer.state.global_step,
        "world_size": args.world_size,
        "micro_batch": args.train_batch_size,
        "accumulation": args.gradient_accumulation_steps,
        "global_batch": global_batch(args),
        "seed": args.seed,
        "plan": repr(trainer.plugin.plan),  # type: ignore[attr-defined]  # of our mixin
        "data": data,
        "sampler": sampler_position(trainer),
        "versions": code,
    }


def global_batch(args: "TrainingArguments") -> int:
    """The rows of an optimizer step on all ranks."""
    return int(args.train_batch_size * args.gradient_accumulation_steps * args.world_size)


def sampler_position(trainer: "Trainer") -> dict[str, Any]:
    """Where in the data a run is: its seed, the steps of an epoch, the epochs and rows behind it.

    Of a stream, whose end nobody knows, there are only the rows.
    """
    args, done = trainer.args, trainer.state.global_step
    steps = _steps_per_epoch(trainer)
    epoch, in_epoch = divmod(done, steps) if steps else (0, done)
    rows = in_epoch * global_batch(args)
    return {"seed": _sampler_seed(trainer), "steps_per_epoch": steps, "epoch": epoch, "rows_seen_in_epoch": rows}


def _steps_per_epoch(trainer: "Trainer") -> int | None:
    """As transformers counts them, https://github.com/huggingface/transformers/blob/main/src/transformers/trainer.py"""
    from transformers.trainer_utils import has_length

    loader = trainer.callback_handler.train_dataloader
    if loader is None or not has_length(loader):
        return None
    return max(1, -(-len(loader) // trainer.args.gradient_accumulation_steps))


def _sampler_seed(trainer: "Trainer") -> int | None:
    """Of Accelerate's seedable sampler, which draws the rows unless the trainer has a sampler of its own."""
    from accelerate.data_loader import get_sampler

    return getattr(get_sampler(trainer.callback_handler.train_dataloader), "initial_seed", None)


def versions() -> dict[str, str]:
    """The code that runs: Python, and those packages that are installed. To find and parse them takes 16 ms."""
    python = ".".join(map(str, sys.version_info[:3]))
    return {"python": python} | {package: found for package in _PACKAGES if (found := _version(package))}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # Unsloth is not needed to train on a CPU
        return None


def arguments(trainer: "Trainer") -> dict[str, Any]:
    """What decides a step: the trainer's arguments that are plain values, and how its rows become batches."""
    given = {name: value for name, value in trainer.args.to_dict().items() if not name.startswith(_OF_ONE_RANK)}
    collator = trainer.data_collator
    batches = {
        "data_collator": type(collator).__name__,
        "data_collator.padding_free": getattr(collator, "padding_free", None),
    }
    return {name: value for name, value in (given | batches).items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))
