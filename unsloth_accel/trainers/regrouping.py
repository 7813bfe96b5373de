"""Whether a row adds the same to a step whichever rows are computed beside it, and on whichever rank."""

import inspect
from collections.abc import Mapping
from typing import Any

from .mean_loss import loss_is_mean


# RoPE whose frequencies follow the longest row of a batch:
# https://github.com/huggingface/transformers/blob/v5.17.0/src/transformers/modeling_rope_utils.py
_ROPE_BY_LENGTH = {"dynamic", "longrope"}
# Optimizers that update the weights in each backward: https://github.com/OpenLMLab/LOMO
_UPDATING_IN_BACKWARD = ("lomo", "adalomo")


def why_not_regrouped(trainer: Any) -> str:
    """Why the micro-batches of a step must be computed as they are; empty if their rows can be put together anew.

    Args:
        trainer (`trl.SFTTrainer`): A trainer that is set up.
    """
    # https://github.com/huggingface/transformers/blob/v5.17.0/src/transformers/integrations/neftune.py
    if trainer.args.neftune_noise_alpha:
        return "NEFTune's noise depends on the length of each batch"
    if optimizer := updating_in_backward(trainer.args):
        return f"{optimizer} updates the weights in each backward"
    if _has_mean_loss(trainer):
        return "the loss of each is a mean"
    kind = rope_by_length(trainer.model.config)
    return f"the frequencies of {kind} RoPE depend on the length of each batch" if kind else ""


def why_not_dealt_anew(trainer: Any) -> str:
    """Why each rank must compute the rows that it has by number; empty if a row counts as much on any rank.

    Args:
        trainer (`trl.SFTTrainer`): A trainer that is set up.
    """
    if trainer.accelerator.num_processes > 1 and not trainer.args.average_tokens_across_devices:
        return "`average_tokens_across_devices=False` weighs a row by the tokens of its rank"
    return why_not_regrouped(trainer)


def updating_in_backward(arguments: Any) -> str:
    """The name of the optimizer, if it is one that updates the weights in each backward; else empty.

    Args:
        arguments (`TrainingArguments`): Of a trainer.
    """
    return next((name for name in _UPDATING_IN_BACKWARD if arguments.optim == name), "")


def rope_by_length(config: Any) -> str:
    """The kind of RoPE whose frequencies follow the longest row of a batch, if a model has one; else empty.

    Args:
        config (`PreTrainedConfig`): Of the model.
    """
    parameters = getattr(config.get_text_config(), "rope_parameters", None) or {}
    by_layer = [each for each in parameters.values() if isinstance(each, Mapping)]
    kinds = _ROPE_BY_LENGTH & {str(each.get("rope_type")) for each in (parameters, *by_layer)}
    return min(kinds, default="")


def _has_mean_loss(trainer: Any) -> bool:
    if trainer.label_smoother is not None:  # it divides by the count of the whole step since transformers 5.15
        return "num_items_in_batch" not in inspect.signature(trainer.label_smoother.__call__).parameters
    return not trainer.model_accepts_loss_kwargs or loss_is_mean(trainer)
