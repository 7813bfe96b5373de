"""Replacing an attribute or item so that it can be put back."""

from collections.abc import Callable, MutableMapping
from typing import Any


Undo = Callable[[], None]


def replace_attribute(owner: Any, name: str, value: Any) -> Undo:
    """Sets an attribute of a module, class or instance.

    Args:
        owner (`Any`): Whose attribute.
        name (`str`): Which.
        value (`Any`): Its new value.

    Returns:
        `Undo`: Restores what `vars(owner)` held, and removes what it did not hold.
    """
    was_there = name in vars(owner)
    original = vars(owner).get(name)

    def undo() -> None:
        if was_there:
            setattr(owner, name, original)
        else:
            delattr(owner, name)

    setattr(owner, name, value)
    return undo


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
