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
    """Makes `owner(...)`, and that of a subclass, an accelerated trainer.

    Args:
        owner (`type`): A class of [`sft_trainer_classes`].
        initialize (`Callable`): Called in place of the class's own `__init__`.

    Returns:
        `Undo`: Restores the `__init__` of before.
    """
    from ..trainers import UnslothAcceleratedTrainerMixin, accelerated

    original = owner.__init__  # type: ignore[misc] # of this very class, not of an instance

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        if isinstance(self, UnslothAcceleratedTrainerMixin):  # on the way up from the accelerated class, or explicit
            original(self, *args, **kwargs)
        else:
            self.__class__ = accelerated(type(self))
            initialize(self, args, kwargs)

    return replace_attribute(owner, "__init__", __init__)
