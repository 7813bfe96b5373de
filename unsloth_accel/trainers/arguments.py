"""What a trainer is given: bound to names, checked before any data are prepared, and put right on several ranks."""

import copy
from collections.abc import Mapping
from inspect import Parameter
from typing import TYPE_CHECKING, Any

from ..errors import ConfigurationError
from ..ranks.logging import log_once
from .mean_loss import loss_is_mean
from .regrouping import updating_in_backward
from .signature import parameters_up_the_mro


if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments

_PACKAGE = __name__.partition(".")[0]
_BY_POSITION = {Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD}


def bound_arguments(trainer_class: type, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What a call of the class that ours are put in front of gives, by the names of its parameters.

    An argument that no class takes is left out or kept under its name: the call itself will refuse it.

    Args:
        trainer_class (`type`): A class with, or without, some of ours in its MRO.
        args (`tuple`): The positional arguments, without `self`.
        kwargs (`Mapping[str, Any]`): The others.
    """
    given = dict(kwargs)
    for parameters in parameters_up_the_mro(_behind_ours(trainer_class)):
        names = [parameter.name for parameter in parameters if parameter.kind in _BY_POSITION]
        given.update(zip(names, args, strict=False))
        args = args[len(names) :]
        if not any(parameter.kind is Parameter.VAR_POSITIONAL for parameter in parameters):
            break
    return given


def _behind_ours(trainer_class: type) -> tuple[type, ...]:
    """The MRO from the class on that the last of ours calls: what stands above has taken its own arguments by then."""
    mro = trainer_class.__mro__
    ours = [index for index, cls in enumerate(mro) if cls.__module__.partition(".")[0] == _PACKAGE]
    return mro[ours[-1] + 1 :] if ours else mro


def check_arguments(trainer_class: type, given: Mapping[str, Any], *, distributed: bool) -> None:
    """Refuses what cannot work, before the data are prepared, which can take long.

    Args:
        trainer_class (`type`): The class of the trainer.
        given (`Mapping[str, Any]`): What it is given, by name, as [`bound_arguments`] returns it.
        distributed (`bool`): Whether there are several ranks.

    Raises:
        ConfigurationError: If the batch size is below 1; `auto_find_batch_size`, or an optimizer that updates the
            weights in backward, is asked for on several ranks; or a trainer of rewards is given a language model.
    """
    arguments = given.get("args")
    if arguments is not None:
        _check_batch_size(arguments, distributed)
        _check_optimizer(arguments, distributed)
    if any(cls.__name__.endswith("RewardTrainer") for cls in trainer_class.__mro__):
        _check_gives_rewards(given.get("model"))


def _check_batch_size(arguments: "TrainingArguments", distributed: bool) -> None:
    if arguments.per_device_train_batch_size < 1:
        raise ConfigurationError(
            f"`per_device_train_batch_size` must be at least 1, got {arguments.per_device_train_batch_size}."
        )
    # One rank alone would start again with smaller batches, and wait for ever for the others, which do not:
    # https://github.com/huggingface/accelerate/blob/v1.15.0/src/accelerate/utils/memory.py
    if distributed and arguments.auto_find_batch_size:
        raise ConfigurationError(
            "`auto_find_batch_size` must be False on several ranks, got True: a rank that runs out of memory would "
            "start again alone, and all would hang. Use a smaller `per_device_train_batch_size`, and raise "
            "`gradient_accumulation_steps` to match."
        )


def _check_optimizer(arguments: "TrainingArguments", distributed: bool) -> None:
    optimizer = updating_in_backward(arguments)
    if distributed and optimizer:
        raise ConfigurationError(
            f"`optim` must be one that updates weights in its `step` on several ranks, got {optimizer!r}: it would "
            "update them in backward, with the gradients of one rank. Use 'adamw_8bit', or one GPU."
        )


def _check_gives_rewards(model: Any) -> None:
    """TRL trains a language model's logits as if they were rewards, and says nothing."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if getattr(head, "out_features", 1) > 1:
        raise ConfigurationError(
            f"`model` must give one reward for each row, got a language model ({type(model).__name__}). Load it with "
            "`FastLanguageModel.from_pretrained(..., num_labels=1)`; without a GPU, where Unsloth ignores that, with "
            "`AutoModelForSequenceClassification.from_pretrained(..., num_labels=1)`."
        )


def correct_mean_loss(trainer: "Trainer") -> None:
    """Sets `average_tokens_across_devices=False` where several ranks would log, and train on, a multiple of the loss.

    The trainer gets arguments of its own: those of the user may be of use for another trainer.

    Args:
        trainer (`Trainer`): One that trains on several ranks with plain data parallelism.
    """
    if not trainer.args.average_tokens_across_devices or not loss_is_mean(trainer):
        return
    trainer.args = copy.copy(trainer.args)
    trainer.args.average_tokens_across_devices = False
    log_once(
        "average_tokens_across_devices = False: the loss is a mean already, and transformers would multiply it by the "
        "number of ranks (%d)",
        trainer.args.world_size,
    )
