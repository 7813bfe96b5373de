"""Whether a row adds the same to a step whichever rows are computed beside it, and on whichever rank."""

import inspect
from collections.abc import Mapping
from typing import Any

from .mean_loss import loss_is_mean


# RoPE whose frequencies follow the longest row of a batch:
# https://github.com/huggingface/transformers/blob/v5.17.0/src/transformers/modeling_rope_utils.py
_ROPE_BY_LENGTH = {"dynamic", "longrope"}
# Optimizers that update the weights in each backward: https://github.com/OpenLMLab/LOMO, and those that transformers
# lets step in a hook of each parameter:
# https://github.com/huggingface/transformers/blob/v5.17.0/src/transformers/trainer_optimizer.py#L164
_UPDATING_IN_BACKWARD = ("lomo", "adalomo", "_layerwise")

# Families whose layers keep documents side by side apart by their positions, which a test shows. Recurrent layers and
# those of Falcon or OPT do not: one document by itself is right there, and two are not.
SEPARATING = {
    *("llama", "mistral", "ministral", "ministral3", "mixtral", "smollm3", "stablelm", "starcoder2", "seed_oss"),
    *("gemma", "gemma2", "gemma3_text", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "phi", "phi3"),
    *("cohere", "cohere2", "granite", "granitemoe", "olmo", "olmo2", "olmo3", "glm", "glm4"),
    *("gpt2", "gpt_neox", "exaone4", "ernie4_5"),
}


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
    if _lie_side_by_side(trainer) and (reason := _why_not_side_by_side(trainer)):
        return reason
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
    name = str(getattr(arguments.optim, "value", arguments.optim))
    return name if name.endswith(_UPDATING_IN_BACKWARD) else ""


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


def _lie_side_by_side(trainer: Any) -> bool:
    arguments = trainer.args
    return bool(arguments.packing or arguments.padding_free or getattr(trainer.data_collator, "padding_free", False))


def _why_not_side_by_side(trainer: Any) -> str:
    """Why documents that lie side by side must have the ones beside them that they have; empty if any are as good."""
    # Where they begin is told without the padding behind them:
    # https://github.com/unslothai/unsloth/blob/main/unsloth/utils/packing.py
    if trainer.args.pad_to_multiple_of or getattr(trainer.data_collator, "pad_to_multiple_of", None):
        return "`pad_to_multiple_of` puts padding behind the documents of each"
    config = trainer.model.config.get_text_config()
    if "chunked_attention" in (getattr(config, "layer_types", None) or ()):
        return "chunks of attention are counted from where a row begins"
    is_alone = trainer.args.per_device_train_batch_size == 1 and not trainer.args.packing
    if is_alone and config.model_type not in SEPARATING:
        return f"each is one document, and nothing shows that {config.model_type!r} keeps two side by side apart"
    return ""
