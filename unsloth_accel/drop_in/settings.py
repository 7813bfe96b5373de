"""Puts the settings of `enable_multi_gpu` into what a script gives its trainer."""

import copy
from typing import Any

from ..errors import ConfigurationError
from ..ranks.logging import log_once
from .config import MultiGPUConfig
from .status import Decision


def put_settings(config: MultiGPUConfig, arguments: Any, model: Any) -> tuple[Any, tuple[Decision, ...]]:
    """Replaces what is set, and logs it.

    Args:
        config ([`MultiGPUConfig`]): The settings.
        arguments (`TrainingArguments`, *optional*): The script's own. They stay as they are.
        model (`torch.nn.Module` or `str`, *optional*): Its gradient checkpointing follows the settings.

    Returns:
        `tuple[TrainingArguments, tuple[Decision, ...]]`: A copy with the settings in it, and what was changed. Without
        a setting, the arguments themselves.

    Raises:
        ConfigurationError: If there are settings, but no arguments.
    """
    settings = _training_arguments(config)
    if not settings:
        return arguments, ()
    if arguments is None:
        raise ConfigurationError(
            f"`args` must be an SFTConfig, in which `enable_multi_gpu` can set {', '.join(settings)}; SFTTrainer was "
            "given none. Pass `args=SFTConfig(...)`."
        )
    decisions = tuple(_decide(name, value, getattr(arguments, name)) for name, value in settings.items())
    arguments = copy.copy(arguments)
    for name, value in settings.items():
        setattr(arguments, name, value)
    if config.enable_gradient_checkpointing is not None and model is not None:
        _set_checkpointing(model, config.enable_gradient_checkpointing)
    return arguments, decisions


def _training_arguments(config: MultiGPUConfig) -> dict[str, Any]:
    """The TrainingArguments that are to be replaced, by name."""
    settings: dict[str, Any] = {}
    if config.batch_size_per_gpu is not None:
        settings["per_device_train_batch_size"] = config.batch_size_per_gpu
    if config.enable_gradient_checkpointing is not None:
        settings["gradient_checkpointing"] = config.enable_gradient_checkpointing
    return settings


def _decide(name: str, value: object, before: object) -> Decision:
    decision = Decision(name, str(value), f"set by enable_multi_gpu, the script said {before}")
    log_once("%s = %s: %s", decision.name, decision.value, decision.reason)
    return decision


def _set_checkpointing(model: Any, value: bool) -> None:
    """Switches what `get_peft_model` set up: Unsloth follows the model, not the TrainingArguments."""
    recorded = getattr(model, "_unsloth_gradient_checkpointing", None)
    if recorded is not None:
        model._unsloth_gradient_checkpointing = recorded if value and recorded else value
    if hasattr(model, "for_training"):  # a model that Unsloth loaded
        model.for_training(use_gradient_checkpointing=value)
