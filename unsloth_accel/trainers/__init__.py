"""Trainers of transformers and TRL, taught to train Unsloth's models on many ranks."""

from typing import TYPE_CHECKING

from .factory import accelerated
from .mixin import UnslothAcceleratedTrainerMixin


if TYPE_CHECKING:
    from .sft import UnslothAcceleratedSFTTrainer

__all__ = ["UnslothAcceleratedSFTTrainer", "UnslothAcceleratedTrainerMixin", "accelerated"]


def __getattr__(name: str) -> object:
    if name == "UnslothAcceleratedSFTTrainer":  # importing it imports unsloth and trl
        from .sft import UnslothAcceleratedSFTTrainer

        return UnslothAcceleratedSFTTrainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
