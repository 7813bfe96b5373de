"""A run goes on where a checkpoint ends, on other ranks, too: the same rows in the same order, as many in a step."""

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import ConfigurationError
from ..ranks.logging import log_once
from .facts import global_batch, sampler_position


if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments

# Samplers whose order does not depend on how many rows a rank computes at once. In transformers 5.
_INDEPENDENT = ("random", "sequential")
_OTHER_ROWS = "or set `ignore_data_skip=True` to go on with other rows."


def fit_run(
    trainer: "Trainer",
    checkpoint: str,
    facts: Mapping[str, Any],
    code: Mapping[str, str],
    data: Mapping[str, Any],
    *,
    automatic: bool,
) -> None:
    """Makes a trainer go on with the rows that a checkpoint has not seen; called before its data loader is made.

    Args:
        trainer (`transformers.Trainer`): One that is about to train. It may get other arguments, a copy.
        checkpoint (`str`): The folder, for what is logged and raised.
        facts (`Mapping[str, Any]`): What its manifest says.
        code (`Mapping[str, str]`): The versions of what runs now.
        data (`Mapping[str, Any]`): The fingerprint of the data that the trainer has.
        automatic (`bool`): Whether `gradient_accumulation_steps` may be changed.

    Raises:
        ConfigurationError: If the data are others, or no accumulation gives a step as many rows as it had.
    """
    _log_versions(checkpoint, facts["versions"], code)
    if facts["world_size"] != trainer.args.world_size:
        ranks = facts["world_size"], trainer.args.world_size
        log_once("resume: %s was written by %d ranks, now there are %d", checkpoint, *ranks)
    if trainer.args.ignore_data_skip:
        return
    _check_data(checkpoint, facts["data"], data)
    trainer.args = keep_global_batch(trainer.args, checkpoint, facts, automatic=automatic)
    _check_sampler(trainer.args, checkpoint, facts)
    if facts["sampler"]["seed"] is not None:
        # Else the order of the rows would follow from the state that torch's generator happens to be in.
        trainer.accelerator.dataloader_config.data_seed = facts["sampler"]["seed"]


def _log_versions(checkpoint: str, written: Mapping[str, str], now: Mapping[str, str]) -> None:
    other = [
        f"{name} {written.get(name)}, now {now.get(name)}"
        for name in {**written, **now}
        if written.get(name) != now.get(name)
    ]
    if other:
        log_once("resume: %s was written with %s", checkpoint, "; ".join(other))


def _check_data(checkpoint: str, written: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    if written != data:
        what = f"{data['rows']} rows" if written["rows"] != data["rows"] else "rows of another content"
        raise ConfigurationError(
            f"`train_dataset` has {what}, {checkpoint} was trained on {written['rows']} rows. Pass the same rows, "
            f"prepared in the same way, {_OTHER_ROWS}"
        )


def keep_global_batch(
    args: "TrainingArguments", checkpoint: str, facts: Mapping[str, Any], *, automatic: bool
) -> "TrainingArguments":
    """Arguments with which an optimizer step has as many rows as it had: those given, or a copy.

    Args:
        args (`transformers.TrainingArguments`): Those given.
        checkpoint (`str`): The folder, for what is logged and raised.
        facts (`Mapping[str, Any]`): What its manifest says.
        automatic (`bool`): Whether `gradient_accumulation_steps` may be changed.

    Raises:
        ConfigurationError: With the choices that keep the rows of a step.
    """
    rows, at_once = facts["global_batch"], args.train_batch_size * args.world_size
    if global_batch(args) == rows:
        return args
    # In GRPO it also says how many completions are generated together.
    if not automatic or rows % at_once or hasattr(args, "steps_per_generation"):
        raise ConfigurationError(_wrong_batch(args, checkpoint, rows))
    given, args = args.gradient_accumulation_steps, copy.copy(args)
    args.gradient_accumulation_steps = rows // at_once
    log_once(
        "resume: gradient_accumulation_steps = %d instead of %d, so that a step on %d ranks has %d rows as in %s",
        args.gradient_accumulation_steps,
        given,
        args.world_size,
        rows,
        checkpoint,
    )
    return args


def _wrong_batch(args: "TrainingArguments", checkpoint: str, rows: int) -> str:
    ranks = args.world_size
    product = f"{args.train_batch_size} x {args.gradient_accumulation_steps} x {ranks} = {global_batch(args)}"
    choices = [f"{size} x {rows // ranks // size}" for size in _divisors(rows // ranks)] if rows % ranks == 0 else []
    here = f"{ranks} ranks" if ranks > 1 else "1 rank"
    way_out = f"With {here} {', '.join(choices)} keep it"
    if not choices:
        way_out = f"No batch size on {here} gives that; {', '.join(map(str, _divisors(rows)))} ranks can"
    return (
        "`per_device_train_batch_size` x `gradient_accumulation_steps` x ranks must stay the rows of an optimizer "
        f"step: got {product}, but {checkpoint} was written with {rows}. {way_out}, {_OTHER_ROWS}"
    )


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def _check_sampler(args: "TrainingArguments", checkpoint: str, facts: Mapping[str, Any]) -> None:
    strategy = getattr(args, "train_sampling_strategy", "random")
    written = [facts[name] for name in ("micro_batch", "accumulation", "world_size")]
    now = [args.train_batch_size, args.gradient_accumulation_steps, args.world_size]
    if strategy not in _INDEPENDENT and written != now:
        raise ConfigurationError(
            f"`train_sampling_strategy` is {strategy!r}, whose order of rows depends on `per_device_train_batch_size` "
            f"x `gradient_accumulation_steps` x ranks: got {' x '.join(map(str, now))}, {checkpoint} was written with "
            f"{' x '.join(map(str, written))}. Resume with these, {_OTHER_ROWS}"
        )


def check_position(trainer: "Trainer", checkpoint: str, facts: Mapping[str, Any]) -> None:
    """Raises if the checkpoint's step is another place in the data here; called when the data loader is made.

    Raises:
        ConfigurationError: If an epoch has another number of steps.
    """
    written, now = facts["sampler"], sampler_position(trainer)
    if not trainer.args.ignore_data_skip and written["steps_per_epoch"] != now["steps_per_epoch"]:
        raise ConfigurationError(
            f"An epoch has {now['steps_per_epoch']} optimizer steps here, in {checkpoint} it had "
            f"{written['steps_per_epoch']}, so its rows are dealt in another way (`dataloader_drop_last` is "
            f"{trainer.args.dataloader_drop_last}). Resume with {facts['world_size']} ranks and "
            f"`per_device_train_batch_size={facts['micro_batch']}`, {_OTHER_ROWS}"
        )
