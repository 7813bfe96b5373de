"""Finds out whether another mode than plain data parallelism is in charge of a model."""

import os
from typing import Any


# Set by `accelerate launch` and by Unsloth's own launch switches before any model exists.
_SWITCHES = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "UNSLOTH_FSDP2": "Unsloth's FSDP2",
}
# Unsloth marks the models that its native modes split: unsloth/fsdp2_launch.py, models/tp_env.py.
_MARKS = {
    "_unsloth_fsdp2_native": "Unsloth's FSDP2",
    "_unsloth_tp": "Unsloth's tensor parallelism",
    "_unsloth_pp": "Unsloth's pipeline parallelism",
}


def sharded_by(model: Any = None) -> str | None:
    """Names the mode that leaves each rank only a part of the weights, or None where every rank holds all of them.

    Args:
        model (`torch.nn.Module`, *optional*): A model to look at, besides the launcher's switches.

    Returns:
        `str`, *optional*: The mode in a user's words.
    """
    for variable, mode in _SWITCHES.items():
        if os.environ.get(variable, "0").lower() not in ("", "0", "false", "no"):
            return mode
    if int(os.environ.get("UNSLOTH_TP_SIZE", "1") or "1") > 1:
        return "Unsloth's tensor parallelism"
    if model is None:
        return None
    from transformers.integrations import is_deepspeed_zero3_enabled

    if is_deepspeed_zero3_enabled():
        return "DeepSpeed ZeRO-3"
    return next((mode for mark, mode in _MARKS.items() if getattr(model, mark, None)), None)
