"""Makes the accelerated form of a trainer class: ours between the user's code and the library's."""

from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from ..errors import ConfigurationError
from .mixin import UnslothAcceleratedTrainerMixin


if TYPE_CHECKING:
    from transformers import Trainer

    from ..plugin import UnslothAcceleratorPlugin

_LIBRARIES = {"transformers", "trl", "unsloth", "unsloth_zoo", "unsloth_compiled_cache"}
_made: "WeakValueDictionary[type[Trainer], type[Trainer]]" = WeakValueDictionary()


def accelerated(trainer_class: "type[Trainer]") -> "type[Trainer]":
    """Returns a subclass of `trainer_class` that trains Unsloth's models on many ranks.

    What a subclass of yours overrides stays on top: its `super()` reaches [`UnslothAcceleratedTrainerMixin`], which
    stands in front of the trainer of the library.

    Unsloth replaces TRL's trainers when it is imported. A class imported before that is looked up again by name, so
    that what you get trains as Unsloth's does, whatever the order of the imports.

    Args:
        trainer_class (`type`):
            A trainer of transformers, TRL or Unsloth, or your own subclass of one.

    Returns:
        `type`: A subclass that also takes `plugin=`; the same one for the same `trainer_class`.

    Raises:
        TypeError: If `trainer_class` is not a trainer class.
        ConfigurationError: If `trainer_class` derives from a trainer that Unsloth has replaced since.

    Example:

    ```python
    >>> from trl import DPOTrainer
    >>> trainer = accelerated(DPOTrainer)(model=model, args=DPOConfig(...), train_dataset=pairs)
    ```
    """
    from ..imports import load_unsloth

    load_unsloth()
    from transformers import Trainer

    if not (isinstance(trainer_class, type) and issubclass(trainer_class, Trainer)):
        raise TypeError(f"`trainer_class` must be a subclass of transformers.Trainer, got {trainer_class!r}.")
    if issubclass(trainer_class, UnslothAcceleratedTrainerMixin):
        return trainer_class
    made = _made.get(trainer_class)
    if made is None:
        made = _made[trainer_class] = _make(trainer_class)
    return made


def _make(trainer_class: "type[Trainer]") -> "type[Trainer]":
    found = next(cls for cls in trainer_class.__mro__ if _is_of_a_library(cls))
    current = _as_unsloth_has_it(found)
    if trainer_class is found:
        return _in_front_of(found) if current is found else accelerated(current)
    if not issubclass(current, found):
        raise ConfigurationError(
            f"`{trainer_class.__name__}` derives from the `trl.{found.__name__}` of before `import unsloth`, which "
            "replaced it. Import unsloth, or call `enable_multi_gpu`, before trl."
        )
    return _under(trainer_class, accelerated(current))


def _is_of_a_library(cls: type) -> bool:
    """Unsloth generates a trainer in a module of the trainer's name, which begins with its own."""
    package = cls.__module__.partition(".")[0]
    return package in _LIBRARIES or package.startswith("Unsloth")


def _as_unsloth_has_it(library_class: "type[Trainer]") -> "type[Trainer]":
    import trl

    of_trl = library_class.__module__.startswith("trl.")
    return getattr(trl, library_class.__name__, library_class) if of_trl else library_class


def _in_front_of(library_class: "type[Trainer]") -> "type[Trainer]":
    import trl

    from .sft import UnslothAcceleratedSFTTrainer

    if library_class is trl.SFTTrainer:
        return UnslothAcceleratedSFTTrainer
    of_sft = issubclass(library_class, trl.SFTTrainer)
    front = UnslothAcceleratedSFTTrainer if of_sft else UnslothAcceleratedTrainerMixin
    return type(f"UnslothAccelerated{library_class.__name__}", (front, library_class), {})


def _under(users_class: "type[Trainer]", accelerated_class: "type[Trainer]") -> "type[Trainer]":
    """The user's class on top of ours. `plugin` goes past its `__init__`, which may take only what it names."""

    def __init__(self: Any, *args: Any, plugin: "UnslothAcceleratorPlugin | None" = None, **kwargs: Any) -> None:
        self._given_plugin = plugin
        super(made, self).__init__(*args, **kwargs)

    name = f"UnslothAccelerated{users_class.__name__}"
    made: type[Any] = type(name, (users_class, accelerated_class), {"__init__": __init__})
    return made
