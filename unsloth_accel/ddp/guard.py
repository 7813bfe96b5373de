"""Stops an optimizer that would apply one rank's own gradients."""

from collections.abc import Sequence
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary, ref

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ..errors import GradientSyncError


_ONE_RANKS_OWN = (
    "The optimizer was about to apply gradients of this rank alone, and the ranks would train apart: {why}. Call the "
    "model that `prepare` or the trainer wrapped, and run the last backward of a step outside `no_sync()`."
)

# A gradient that was applied, and how often it had been written to by then.
_Seen: TypeAlias = "tuple[ref[Tensor], int]"


class OptimizerGuard:
    """Knows which gradients are those of all ranks, and raises in any optimizer that steps on others.

    Args:
        parameters (`Sequence[nn.Parameter]`): The model's. Optimizers of other parameters are left alone.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        # Weak, because a guard that nobody closes outlives its model, and other parameters then have those addresses.
        self._mine = {id(p): ref(p) for p in parameters}
        self._reductions = 0
        self._local = False
        # For each optimizer the reductions before its last step, and the gradients it then applied.
        self._steps: WeakKeyDictionary[Optimizer, tuple[int, list[_Seen]]] = WeakKeyDictionary()
        self.applied = True  # whether an optimizer has stepped since the last reduction
        self._handle = register_optimizer_step_pre_hook(self._before_step)

    def close(self) -> None:
        """Lets every optimizer go on unchecked."""
        self._handle.remove()

    def note_local(self) -> None:
        """A backward runs that no reduction will follow."""
        self._local = True

    def note_reduced(self) -> None:
        """All gradients are now those of all ranks."""
        self._local, self.applied = False, False
        self._reductions += 1

    @property
    def has_local(self) -> bool:
        """Whether a backward has run that no reduction followed."""
        return self._local

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        gradients = self._gradients(optimizer)
        if not gradients:
            return
        if self._local:
            raise GradientSyncError(
                _ONE_RANKS_OWN.format(
                    why="a backward ran under `no_sync()`, or its forward did not go through the wrapped model"
                )
            )
        reductions, applied = self._steps.get(optimizer, (0, []))
        if reductions == self._reductions and not _are(applied, gradients):
            raise GradientSyncError(_ONE_RANKS_OWN.format(why="no reduction has run since its last step"))
        self._steps[optimizer] = (self._reductions, [(ref(gradient), gradient._version) for gradient in gradients])
        self.applied = True

    def _gradients(self, optimizer: Optimizer) -> list[Tensor]:
        """What the optimizer is about to apply to our parameters."""
        parameters = (p for group in optimizer.param_groups for p in group["params"] if self._is_mine(p))
        return [p.grad for p in parameters if p.grad is not None]

    def _is_mine(self, parameter: nn.Parameter) -> bool:
        known = self._mine.get(id(parameter))
        return known is not None and known() is parameter


def _are(applied: Sequence[_Seen], gradients: Sequence[Tensor]) -> bool:
    """Whether these gradients are the ones applied before, and unchanged."""
    if len(applied) != len(gradients):
        return False
    return all(seen() is g and version == g._version for (seen, version), g in zip(applied, gradients, strict=True))
