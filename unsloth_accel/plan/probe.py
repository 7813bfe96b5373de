"""Measures what a step needs of a GPU's memory, in a step that is computed as ever."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class ProbeFigures:
    """What one rank has measured in a step; 0 where it did not.

    Args:
        room (`float`): Bytes that are free for what a step computes, without the margin.
        peak (`float`): The most bytes that were in use.
        work (`float`): Bytes that a token of the largest batch needed, apart from layers that were kept.
        layer (`float`): Bytes that a kept layer held for each token.
        batch_tokens (`float`): The tokens of the largest batch, padding included.
        step_tokens (`float`): Those of the whole step.
        together (`float`): How its micro-batches can be put together: a [`Together`].
        together_tokens (`float`): The tokens of the step as one batch, padding included; 0 where it cannot be one.
    """

    room: float = 0.0
    peak: float = 0.0
    work: float = 0.0
    layer: float = 0.0
    batch_tokens: float = 0.0
    step_tokens: float = 0.0
    together: float = 0.0
    together_tokens: float = 0.0


class MemoryProbe:
    """Measures one step, during which one layer is not recomputed.

    The allocator's counters are read on the host, where tensors are allocated: nothing waits for the device. It resets
    torch's peak, once.

    Args:
        device (`torch.device`): A GPU.
        margin (`float`): The share of the card to leave alone.
        gradient_bytes (`int`): What the gradients take. They may be there twice, while a piece's are apart.
        layer (`nn.Module`, *optional*): The layer that is kept.
    """

    def __init__(self, device: torch.device, margin: float, gradient_bytes: int, layer: nn.Module | None) -> None:
        self._device = device
        self._before = torch.cuda.memory_allocated(device)
        self._room = free_bytes(device) - margin * _total_bytes(device) - 2 * gradient_bytes
        self._gradients = gradient_bytes
        self._entered = 0
        self._kept: list[tuple[int, int]] = []  # bytes and tokens of the layer in each batch
        self._hooks = [] if layer is None else self._watch(layer)
        torch.cuda.reset_peak_memory_stats(device)

    def finish(self, batches: Sequence[int]) -> ProbeFigures:
        """Ends the measurement, when all gradients of the step are there.

        Args:
            batches (`Sequence[int]`): The tokens of each batch of the step.
        """
        for hook in self._hooks:
            hook.remove()
        peak = torch.cuda.max_memory_allocated(self._device)
        largest = max(batches, default=0)
        layer = max((held / tokens for held, tokens in self._kept), default=0.0)
        work = max(0.0, peak - self._before - self._gradients - layer * largest)
        return ProbeFigures(
            room=self._room,
            peak=peak,
            work=work / max(largest, 1),
            layer=layer,
            batch_tokens=largest,
            step_tokens=sum(batches),
        )

    def _watch(self, layer: nn.Module) -> list[Any]:
        return [
            layer.register_forward_pre_hook(self._enter, with_kwargs=True),
            layer.register_forward_hook(self._leave, with_kwargs=True),
        ]

    def _enter(self, *_: Any) -> None:
        self._entered = torch.cuda.memory_allocated(self._device)

    def _leave(self, layer: nn.Module, args: Sequence[Any], kwargs: dict[str, Any], output: Any) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        self._kept.append((torch.cuda.memory_allocated(self._device) - self._entered, hidden.shape[:-1].numel()))


def can_measure(device: torch.device) -> bool:
    """Whether torch counts what is allocated there."""
    return device.type == "cuda"


def free_bytes(device: torch.device) -> float:
    """What this process can still allocate: what the card has free, what torch has cached, and within its fraction."""
    allocated, cached = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
    free, total = torch.cuda.mem_get_info(device)
    allowed = torch.cuda.get_per_process_memory_fraction(device) * total
    return min(free + cached - allocated, allowed - allocated)


def _total_bytes(device: torch.device) -> float:
    """The card, or the part of it that this process may use."""
    return torch.cuda.get_per_process_memory_fraction(device) * torch.cuda.mem_get_info(device)[1]
