"""Plain data parallelism, or who else is in charge of a model."""

import atexit
import os
from typing import TYPE_CHECKING, Any

from ..errors import ConfigurationError
from ..ranks.environment import is_distributed, world_size
from ..ranks.logging import log_once


if TYPE_CHECKING:
    from accelerate import Accelerator

# The `distributed_type` of Accelerate that wraps a model in torch's DDP. In every other one (FSDP, DeepSpeed,
# Megatron, TP) and in Unsloth's native parallel modes this package stands down.
DDP_TYPES = ("MULTI_GPU", "MULTI_CPU")

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


def parallel_mode(model: Any = None) -> str | None:
    """Names the mode that leaves each rank only a part of the weights, or None where every rank holds all of them.

    Args:
        model (`torch.nn.Module`, *optional*): A model to look at, besides the launcher's switches.

    Returns:
        `str`, *optional*: The mode in a user's words.
    """
    for variable, mode in _SWITCHES.items():
        if os.environ.get(variable, "0").lower() not in ("", "0", "false", "no"):
            return mode
    if os.environ.get("UNSLOTH_TP_SIZE", "1") not in ("", "0", "1"):
        return "Unsloth's tensor parallelism"
    if model is None:
        return None
    from transformers.integrations import is_deepspeed_zero3_enabled

    if is_deepspeed_zero3_enabled():
        return "DeepSpeed ZeRO-3"
    return next((mode for mark, mode in _MARKS.items() if getattr(model, mark, None)), None)


def other_mode(accelerator: "Accelerator", model: Any = None, args: Any = None) -> str | None:
    """Names what trains a model on several ranks instead of plain data parallelism.

    Args:
        accelerator (`Accelerator`): Whose ranks.
        model (`torch.nn.Module`, *optional*): The model to train.
        args (`TrainingArguments`, *optional*): Those of its trainer.

    Returns:
        `str`, *optional*: The mode in a user's words; None where that is plain data parallelism, or one process.
    """
    if accelerator.num_processes == 1:
        return None
    if (getattr(args, "context_parallel_size", None) or 1) > 1:
        return "Unsloth's context parallelism"
    wrapped_by = accelerator.distributed_type.value
    return parallel_mode(model) or (None if wrapped_by in DDP_TYPES else wrapped_by)


def runs_plain_ddp(accelerator: "Accelerator", model: Any = None, args: Any = None) -> bool:
    """Whether plain data parallelism over several ranks trains the model: the one question before anything of ours."""
    return accelerator.num_processes > 1 and other_mode(accelerator, model, args) is None


def log_stand_down(mode: str) -> None:
    """Says that another mode than plain data parallelism trains the model, so that nothing of ours does."""
    log_once("%s is in charge, unsloth_accel stands down", mode)


def check_ranks_train_together(accelerator: "Accelerator") -> None:
    """Raises if the launcher started several ranks, but Accelerate would let each train as if it were alone.

    Raises:
        ConfigurationError: Naming both counts and what to set.
    """
    if is_distributed() and accelerator.num_processes == 1:
        raise ConfigurationError(
            f"`WORLD_SIZE` is {world_size()}, but Accelerate sees 1 process: the ranks would train apart. "
            "Without a GPU set ACCELERATE_USE_CPU=true, or pass `use_cpu=True` to the training arguments."
        )


def destroy_process_group_at_exit() -> None:
    """Destroys the process group when the interpreter exits, so that torch does not warn that nobody did."""
    import torch.distributed as dist

    atexit.register(lambda: dist.destroy_process_group() if dist.is_initialized() else None)
