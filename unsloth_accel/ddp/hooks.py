"""Hooks that stay with the module they were made for."""

from collections.abc import Callable
from typing import Any

from torch import nn


def only_on(module: nn.Module, act: Callable[..., None]) -> Callable[..., None]:
    """A hook that acts where `module` calls it, and does nothing where a deep copy of it does.

    It is a function, which a copy shares. A bound method would be copied with all that it holds, and the copy fails at
    the process group.

    Args:
        module (`nn.Module`): What the hook is to be registered on.
        act (`Callable`): Called with the hook's arguments.

    Returns:
        `Callable`: The hook.
    """

    def hook(called: nn.Module, *args: Any) -> None:
        if called is module:
            act(called, *args)

    return hook
