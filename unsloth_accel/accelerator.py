"""Accelerate's `Accelerator`, taught to prepare Unsloth's models: for people who write their own loop."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .ddp.ignored import ignored_by_ddp
from .ddp.mode import (
    check_ranks_train_together,
    destroy_process_group_at_exit,
    log_stand_down,
    parallel_mode,
    runs_ddp,
)
from .ddp.policy import configure_ddp, log_policy
from .ddp.reduction import StepReduction
from .errors import PeerError
from .fixes import AppliedFixes, apply_fixes, apply_loading_fixes
from .plugin import UnslothAcceleratorPlugin
from .ranks.environment import is_distributed


class UnslothAccelerator(Accelerator):
    """An `accelerate.Accelerator` that knows Unsloth's models.

    Takes the arguments of `accelerate.Accelerator`, and `plugin`. On one process, and under FSDP, DeepSpeed or
    Megatron, it is the stock class.

    Args:
        plugin ([`UnslothAcceleratorPlugin`], *optional*):
            The choices for data-parallel training. Defaults to one read from the environment.
        kwargs_handlers (`list[KwargsHandler]`, *optional*):
            As in Accelerate. Values in a `DistributedDataParallelKwargs` win over the rule, where they differ from
            its defaults; to insist on a default, set the plugin's field.

    Attributes:
        applied_fixes (`list[AppliedFixes]`):
            For each prepared model the handle that takes back the fixes it needed.

    Raises:
        ConfigurationError: In `prepare`, if the model is split over several GPUs or choices contradict each other.

    Example:

    ```python
    >>> accelerator = UnslothAccelerator(gradient_accumulation_steps=4)
    >>> model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    >>> for batch in loader:
    ...     with accelerator.accumulate(model):
    ...         accelerator.backward(model(**batch).loss)
    ...         optimizer.step()
    ...         optimizer.zero_grad()
    ```
    """

    def __init__(
        self,
        *args: Any,
        plugin: UnslothAcceleratorPlugin | None = None,
        kwargs_handlers: list[Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.plugin = plugin or UnslothAcceleratorPlugin()
        given = [h for h in kwargs_handlers or () if isinstance(h, DistributedDataParallelKwargs)]
        self._user_set_ddp = set(self.plugin.explicit_ddp_fields()).union(*(handler.to_kwargs() for handler in given))
        self._reductions: list[StepReduction] = []
        self.applied_fixes: list[AppliedFixes] = []
        # Accelerate's launcher does not tell several ranks about `use_cpu`.
        kwargs.setdefault("cpu", is_distributed() and not torch.accelerator.is_available())
        super().__init__(*args, kwargs_handlers=self.plugin.to_handlers(kwargs_handlers), **kwargs)
        check_ranks_train_together(self)
        if runs_ddp(self):
            destroy_process_group_at_exit()
            apply_loading_fixes()

    def prepare_model(
        self, model: nn.Module, device_placement: bool | None = None, evaluation_mode: bool = False
    ) -> Any:
        """As `Accelerator.prepare_model`; a trainable model is wrapped with the gradient synchronisation chosen."""
        trained = any(parameter.requires_grad for parameter in model.parameters())
        if evaluation_mode or not trained or not self._is_in_charge_of(model):
            return super().prepare_model(model, device_placement, evaluation_mode)
        choice = configure_ddp(model, self.plugin, self.ddp_handler, self._user_set_ddp)
        log_policy(choice, self.ddp_handler, self.num_processes)
        self.applied_fixes.append(apply_fixes(model))
        with ignored_by_ddp(model):
            prepared = super().prepare_model(model, device_placement, evaluation_mode)
        if choice.mode == "deferred" and isinstance(prepared, DistributedDataParallel):
            self._reductions.append(StepReduction(prepared, deferred=True))
        return prepared

    def _is_in_charge_of(self, model: nn.Module) -> bool:
        """Whether plain data parallelism trains the model; another mode is named once for each model."""
        mode = parallel_mode(model)
        if runs_ddp(self) and mode is None:
            return True
        if self.num_processes > 1:
            log_stand_down(mode or self.distributed_type.value)
        return False

    def backward(self, loss: torch.Tensor, **kwargs: Any) -> None:
        """As `Accelerator.backward`; after the last micro-batch of a step the gradients are averaged."""
        super().backward(loss, **kwargs)
        if self.sync_gradients:
            for reduction in self._reductions:
                reduction.run()
                reduction.rows()

    @contextmanager
    def accumulate(self, *models: nn.Module) -> Iterator[None]:
        """As `Accelerator.accumulate`; an error inside is announced to the other ranks, which then stop, too.

        Gather metrics outside the block: a rank that waits in a gather inside it does not hear of the error.
        """
        try:
            with super().accumulate(*models):
                yield
        except PeerError:
            raise  # the others know already
        except Exception:
            for reduction in self._reductions:
                reduction.announce_failure()
            raise

    def free_memory(self, *objects: Any) -> Any:
        """As `Accelerator.free_memory`; gradients of prepared models are DDP's again."""
        for reduction in self._reductions:
            reduction.close()
        self._reductions.clear()
        return super().free_memory(*objects)
