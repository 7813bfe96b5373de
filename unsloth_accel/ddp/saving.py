"""Refuses to save weights that hold an update in which a rank had no part."""

from typing import Any, NoReturn

from torch import nn

from ..errors import PeerError


def refuse_saving(module: nn.Module, reason: str) -> None:
    """Makes every way to save `module` raise, since each asks for its `state_dict`, until other weights are loaded.

    Args:
        module (`nn.Module`): The model, not wrapped.
        reason (`str`): Why, as a clause.
    """

    def refuse(*_: Any) -> NoReturn:
        raise PeerError(f"{reason}. They cannot be saved; go back to the last checkpoint.")

    def allow(*_: Any) -> None:
        for handle in handles:
            handle.remove()

    handles = [part.register_state_dict_pre_hook(refuse) for part in module.modules()]
    handles.append(module.register_load_state_dict_post_hook(allow))
