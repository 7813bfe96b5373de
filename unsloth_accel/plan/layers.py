"""Lets some layers keep their activations instead of recomputing them in backward."""

from typing import Any, Literal

from torch import nn

from ..patching import Undo, replace_attribute, undo_all
from .out_of_memory import reset_unsloth_checkpointing


# What transformers' GradientCheckpointingLayer, which Unsloth's layers are, looks at in each forward.
_FLAG = "gradient_checkpointing"


def keep_layers(model: nn.Module, count: int | Literal["all"]) -> tuple[int, Undo]:
    """Switches checkpointing off in `count` of the model's checkpointed layers, spread evenly.

    To be called after `for_training()` or `gradient_checkpointing_enable()`, which set every layer's flag.

    Args:
        model (`nn.Module`): The model, not wrapped.
        count (`int` or `"all"`): How many layers; more than there are means all.

    Returns:
        `tuple[int, Undo]`: How many layers were switched off, and what switches them on again.
    """
    layers = checkpointed_layers(model)
    kept = len(layers) if count == "all" else min(count, len(layers))
    chosen = [layers[(index + 1) * len(layers) // kept - 1] for index in range(kept)]
    undos = [replace_attribute(layer, _FLAG, False) for layer in chosen]
    if kept:
        reset_unsloth_checkpointing()
    return kept, lambda: undo_all(undos)


def checkpointed_layers(model: nn.Module) -> list[Any]:
    """The layers that recompute their activations in backward."""
    return [layer for layer in checkpointable_layers(model) if is_recomputed(layer)]


def checkpointable_layers(model: nn.Module) -> list[Any]:
    """The layers that can recompute their activations in backward, whether they do or not."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def is_recomputed(layer: nn.Module) -> bool:
    """Whether a layer recomputes its activations, as its flag is now."""
    return bool(getattr(layer, _FLAG, False))
