"""What `accelerator.prepare` returns for a model: wrapped in DDP, or else it must not be trained."""

from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel


# https://github.com/huggingface/accelerate/blob/v1.15.0/src/accelerate/accelerator.py, `prepare_model`: a model with
# this mark is returned as it is, so what was evaluated first would be trained without DDP.
MARK = "_is_accelerate_prepared"


def forget_preparation(model: nn.Module) -> None:
    """Removes Accelerate's mark from a model that it prepared for evaluation, so that it is wrapped for training.

    Args:
        model (`nn.Module`): The model itself, not what `prepare` returned for it.
    """
    if MARK in vars(model):
        delattr(model, MARK)


def find_ddp(model: Any) -> DistributedDataParallel | None:
    """The DDP in what `prepare` returned, also inside `torch.compile`; None if there is none."""
    inner = getattr(model, "_orig_mod", model)
    return inner if isinstance(inner, DistributedDataParallel) else None
