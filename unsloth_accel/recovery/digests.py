"""Numbers that stand for what a rank trains: equal where every bit is."""

from typing import Any

from torch import Tensor, nn

from ..ddp.bits import sums_of_bits


Held = dict[str, Any]


def trained_weights(model: nn.Module) -> Held:
    """A number for each parameter that is trained, by its name."""
    return sums_of_bits({name: p.detach() for name, p in model.named_parameters() if p.requires_grad})


def optimizer_state(optimizer: Any, model: nn.Module) -> Held:
    """A number for each tensor of an optimizer's state, and its other values as they are.

    Args:
        optimizer (`torch.optim.Optimizer`): Also one that Accelerate has wrapped.
        model (`nn.Module`): What it trains, for the names.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    values: Held = {}
    for number, group in enumerate(optimizer.param_groups):
        values |= {f"{key} of group {number}": value for key, value in group.items() if _is_number(value)}
        for place, parameter in enumerate(group["params"]):
            name = names.get(id(parameter), f"parameter {place} of group {number}")
            state = optimizer.state.get(parameter, {})
            values |= {f"{key} of {name}": value for key, value in state.items()}
    # Quantised states are classes of their own; their bits are in tensors that only they know.
    tensors = {name: value for name, value in values.items() if type(value) is Tensor}
    return sums_of_bits(tensors) | {name: value for name, value in values.items() if _is_number(value)}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))
