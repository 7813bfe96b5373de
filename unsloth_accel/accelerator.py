"""Accelerate's `Accelerator`, taught to prepare Unsloth's models: for people who write their own loop."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import nn

from .ddp.ignored import ignored_by_ddp
from .ddp.mode import (
    check_ranks_train_together,
    destroy_process_group_at_exit,
    log_stand_down,
    other_mode,
    runs_plain_ddp,
)
from .ddp.policy import configure_ddp, log_policy
from .ddp.prepare import find_ddp, forget_preparation
from .ddp.run import DataParallelRun
from .errors import GradientSyncError, PeerError
from .fixes import AppliedFixes, apply_fixes, apply_loading_fixes, apply_restart_fixes
from .plugin import UnslothAcceleratorPlugin
from .ranks.environment import is_distributed
from .ranks.restarts import begin_attempt


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
        begin_attempt()
        apply_restart_fixes()  # before Accelerate makes the process group
        self.plugin = plugin or UnslothAcceleratorPlugin()
        given = [h for h in kwargs_handlers or () if isinstance(h, DistributedDataParallelKwargs)]
        self._user_set_ddp = set(self.plugin.explicit_ddp_fields()).union(*(handler.to_kwargs() for handler in given))
        self._runs: list[DataParallelRun] = []
        self.applied_fixes: list[AppliedFixes] = []
        # Accelerate's launcher does not tell several ranks about `use_cpu`.
        kwargs.setdefault("cpu", is_distributed() and not torch.accelerator.is_available())
        super().__init__(*args, kwargs_handlers=self.plugin.to_handlers(kwargs_handlers), **kwargs)
        check_ranks_train_together(self)
        if runs_plain_ddp(self):
            destroy_process_group_at_exit()
            apply_loading_fixes()

    def prepare_model(
        self, model: nn.Module, device_placement: bool | None = None, evaluation_mode: bool = False
    ) -> Any:
        """As `Accelerator.prepare_model`; a trainable model is wrapped with the gradient synchronisation chosen."""
        trained = any(parameter.requires_grad for parameter in model.parameters())
        is_wrapped = find_ddp(model) is not None
        if evaluation_mode or is_wrapped or not trained or not self._is_in_charge_of(model):
            return super().prepare_model(model, device_placement, evaluation_mode)
        choice = configure_ddp(model, self.plugin, self, self._user_set_ddp)
        log_policy(choice, self.ddp_handler, self.num_processes)
        self.applied_fixes.append(apply_fixes(model))
        forget_preparation(model)
        with ignored_by_ddp(model):
            prepared = super().prepare_model(model, device_placement, evaluation_mode)
        ddp = find_ddp(prepared)
        if ddp is None:
            raise GradientSyncError(
                f"Accelerate returned the {type(model).__name__} without DistributedDataParallel around it: its "
                "gradients would stay those of each rank. Prepare the model itself, once."
            )
        if not choice.compiled:
            self._runs.append(DataParallelRun(ddp, deferred=choice.mode == "deferred"))
        return prepared

    def _is_in_charge_of(self, model: nn.Module) -> bool:
        """Whether plain data parallelism trains the model; another mode is named once for each model."""
        other = other_mode(self, model)
        if other is not None:
            log_stand_down(other)
        return self.num_processes > 1 and other is None

    @contextmanager
    def accumulate(self, *models: nn.Module) -> Iterator[None]:
        """As `Accelerator.accumulate`; an error inside is told to the other ranks, which then stop, too.

        Gather metrics outside the block: a rank that waits in a gather inside it does not hear of the error.
        """
        begun = [run.reductions_begun for run in self._runs]
        try:
            with super().accumulate(*models):
                yield
        except PeerError:
            raise  # the others know already
        except Exception:
            # With several models nobody knows in whose reduction the others wait: this rank leaves at once.
            joins = len(self._runs) == 1 and [run.reductions_begun for run in self._runs] == begun
            for run in self._runs:
                run.fail(joins=joins)
            raise

    def _settle(self) -> None:
        """Takes in what every rank said in the last step, before the ranks meet or anything leaves the process."""
        for run in self._runs:
            run.settle()

    def gather(self, tensor: Any) -> Any:
        """As `Accelerator.gather`."""
        self._settle()
        return super().gather(tensor)

    def reduce(self, *args: Any, **kwargs: Any) -> Any:
        """As `Accelerator.reduce`."""
        self._settle()
        return super().reduce(*args, **kwargs)

    def wait_for_everyone(self) -> None:
        """As `Accelerator.wait_for_everyone`; then the weights that the last step has made are compared."""
        self._settle()
        super().wait_for_everyone()
        for run in self._runs:
            run.compare_weights()

    def log(self, *args: Any, **kwargs: Any) -> None:
        """As `Accelerator.log`."""
        self._settle()
        super().log(*args, **kwargs)

    def save_state(self, *args: Any, **kwargs: Any) -> Any:
        """As `Accelerator.save_state`."""
        self._settle()
        return super().save_state(*args, **kwargs)

    def get_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As `Accelerator.get_state_dict`."""
        self._settle()
        return super().get_state_dict(*args, **kwargs)

    def unwrap_model(self, *args: Any, **kwargs: Any) -> Any:
        """As `Accelerator.unwrap_model`, which is what saving a model begins with."""
        self._settle()
        return super().unwrap_model(*args, **kwargs)

    def free_memory(self, *objects: Any) -> Any:
        """As `Accelerator.free_memory`; gradients of prepared models are DDP's again."""
        for run in self._runs:
            run.close()
        self._runs.clear()
        while self.applied_fixes:
            self.applied_fixes.pop().undo()
        return super().free_memory(*objects)
