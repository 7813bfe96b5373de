"""Computing a piece again, in smaller ones, after it did not fit into memory."""

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor, nn


# What Accelerate's list does not have: Triton and cuBLAS raise plain RuntimeErrors.
_TEXTS = ("Triton Error [CUDA]: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
Part = TypeVar("Part")
Result = TypeVar("Result")

_CHECKPOINTING = "unsloth_zoo.gradient_checkpointing"


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that the device's memory, or the host's, was too small."""
    return should_reduce_batch_size(error) or any(text in str(error) for text in _TEXTS)


def compute_parts(
    parts: Sequence[Part],
    compute: Callable[[Part], Result],
    cut: Callable[[Part, str], Sequence[Part]] | None,
    parameters: Sequence[nn.Parameter] = (),
) -> Iterator[tuple[Part, Result]]:
    """Computes parts of a step one after the other, and those that do not fit into memory in smaller ones.

    Args:
        parts (`Sequence`): What to compute.
        compute (`Callable`): Computes a part, and the gradients of `parameters`.
        cut (`Callable`, *optional*): Makes smaller parts of one, or raises; it gets the error, too. None: the error of
            a part that does not fit is raised.
        parameters (`Sequence[nn.Parameter]`, *optional*): What is trained.

    Yields:
        `tuple`: A part that was computed, as a whole, and what `compute` gave for it.
    """
    left = list(parts)
    while left:
        part, *left = left
        if cut is None:
            yield part, compute(part)
            continue
        result, error = compute_apart(partial(compute, part), parameters)
        if result is None:
            left = [*cut(part, error), *left]
        else:
            yield part, result


def compute_apart(compute: Callable[[], Result], parameters: Sequence[nn.Parameter]) -> tuple[Result | None, str]:
    """Runs a forward and backward whose gradients count only if all of it went well.

    Args:
        compute (`Callable`): Computes something, and its gradients.
        parameters (`Sequence[nn.Parameter]`): What is trained.

    Returns:
        `tuple`: What was computed, and an empty text; or None and the error, where memory was too small: then all
        gradients are as before. Any other error is raised.
    """
    before = [p.grad for p in parameters]
    for parameter in parameters:
        parameter.grad = None
    try:
        result = compute()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        text = str(error)
    else:
        _add(parameters, before)
        return result, ""
    # Not in the `except` block, where the traceback's frames still hold the activations.
    for parameter, gradient in zip(parameters, before, strict=True):
        parameter.grad = gradient
    release_memory()
    return None, text


def release_memory() -> None:
    """Gives back what a broken-off forward or backward has left behind."""
    reset_unsloth_checkpointing()
    clear_device_cache(garbage_collection=True)


def reset_unsloth_checkpointing() -> None:
    """Lets Unsloth's checkpointing count anew how many layers it is called for in a step."""
    module = sys.modules.get(_CHECKPOINTING)
    if module is not None and "GPU_BUFFERS" in vars(module):  # else it was never switched on
        module.reset_unsloth_gradient_checkpointing_buffers()


def _add(parameters: Sequence[nn.Parameter], before: Sequence[Tensor | None]) -> None:
    for parameter, gradient in zip(parameters, before, strict=True):
        if gradient is not None and parameter.grad is not None:
            parameter.grad = gradient.add_(parameter.grad)
        elif gradient is not None:
            parameter.grad = gradient
