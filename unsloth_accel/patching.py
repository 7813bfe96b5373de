"""Replacing an attribute or item so that it can be put back."""

from collections.abc import Callable, MutableMapping
from functools import partial
from types import MethodType
from typing import Any
from weakref import ref


Undo = Callable[[], None]


def replace_attribute(owner: Any, name: str, value: Any) -> Undo:
    """Sets an attribute of a module, class or instance.

    Args:
        owner (`Any`): Whose attribute.
        name (`str`): Which.
        value (`Any`): Its new value.

    Returns:
        `Undo`: Restores what `vars(owner)` held, and removes what it did not hold. It does not keep `owner` alive.
    """
    was_there = name in vars(owner)
    original = _unbound(vars(owner).get(name), owner)
    reference = ref(owner)

    def undo() -> None:
        alive = reference()
        if alive is None:
            return
        if was_there:
            setattr(alive, name, original(alive))
        else:
            delattr(alive, name)

    setattr(owner, name, value)
    return undo


def _unbound(value: Any, owner: Any) -> Callable[[Any], Any]:
    """Gives `value` back when it is called with `owner`: a method that stays bound to it would keep it alive."""
    if isinstance(value, MethodType) and value.__self__ is owner:
        return partial(MethodType, value.__func__)
    return lambda _: value


def replace_item(mapping: MutableMapping[str, str], key: str, value: str) -> Undo:
    """Sets an item, as of `os.environ`.

    Args:
        mapping (`MutableMapping[str, str]`): Whose item.
        key (`str`): Which.
        value (`str`): Its new value.

    Returns:
        `Undo`: Restores what the mapping held, and removes what it did not hold.
    """
    original = mapping.get(key)

    def undo() -> None:
        if original is None:
            mapping.pop(key, None)
        else:
            mapping[key] = original

    mapping[key] = value
    return undo


def undo_all(undos: list[Undo]) -> None:
    """Takes back in reverse order, once."""
    while undos:
        undos.pop()()
