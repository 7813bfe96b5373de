"""Reaches the trainer of a script that is not changed.

One attribute is replaced: `__init__` of the class that `trl.SFTTrainer` is. It moves the new object to the
accelerated class and initialises it as that. Replacing the name `trl.SFTTrainer` would miss every
`from trl import SFTTrainer` that ran before; a replaced `__new__` cannot be taken back (CPython keeps the slot,
https://github.com/python/cpython/issues/105888); but all names, and all subclasses, come to the same `__init__`.
"""

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import ConfigurationError
from ..patching import Undo, replace_attribute


# Called with the object, already of the accelerated class, and the arguments it was made with.
Initialize = Callable[[Any, Sequence[Any], dict[str, Any]], None]


# Every class that `trl.SFTTrainer` was at a call of `sft_trainer_classes`: a script may hold any of them.
_seen: dict[type, None] = {}


def sft_trainer_classes() -> list[type]:
    """The classes a script's `SFTTrainer` can be: today's, and TRL's own where trl was imported before Unsloth."""
    from ..imports import load_unsloth

    if "trl.trainer.sft_trainer" in sys.modules:
        _seen[sys.modules["trl.trainer.sft_trainer"].SFTTrainer] = None
    load_unsloth()
    import trl

    _seen[trl.SFTTrainer] = None
    return list(_seen)


def redirect(owner: type, initialize: Initialize) -> Undo:
    """Lets `owner(...)`, and a subclass's, become the accelerated trainer; returns what takes it back."""
    from ..trainers import UnslothAcceleratedTrainerMixin

    original = owner.__init__  # type: ignore[misc] # of this very class, not of an instance

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        if isinstance(self, UnslothAcceleratedTrainerMixin):  # on the way up from the accelerated class, or explicit
            original(self, *args, **kwargs)
        else:
            self.__class__ = _accelerated_form(type(self), owner)
            initialize(self, args, kwargs)

    return replace_attribute(owner, "__init__", __init__)


def _accelerated_form(trainer_class: type, owner: type) -> type:
    """The accelerated class for an object that was made as `trainer_class`.

    A subclass of the script keeps its overrides on top: the same as if it had been derived from the accelerated class.
    """
    from ..trainers import UnslothAcceleratedSFTTrainer

    if trainer_class is owner:
        return UnslothAcceleratedSFTTrainer
    if not issubclass(UnslothAcceleratedSFTTrainer, owner):
        raise ConfigurationError(
            f"`{trainer_class.__name__}` derives from the `trl.SFTTrainer` of before `import unsloth`, which "
            "replaced it. Import unsloth, or call `enable_multi_gpu`, before trl."
        )
    return type(f"UnslothAccelerated{trainer_class.__name__}", (trainer_class, UnslothAcceleratedSFTTrainer), {})


def set_checkpointing(model: Any, value: bool) -> None:
    """Switches what `get_peft_model` set up: Unsloth follows the model, not the TrainingArguments."""
    recorded = getattr(model, "_unsloth_gradient_checkpointing", None)
    if recorded is not None:
        model._unsloth_gradient_checkpointing = recorded if value and recorded else value
    if hasattr(model, "for_training"):  # a model that Unsloth loaded
        model.for_training(use_gradient_checkpointing=value)
