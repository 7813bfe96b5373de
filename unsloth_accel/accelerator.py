"""Accelerate's `Accelerator`, taught to prepare Unsloth's models: for people who write their own loop."""

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .announce import announce
from .errors import ConfigurationError, PeerError
from .fixes import AppliedFixes, apply_fixes, apply_loading_fixes
from .fixes.frozen_weights import left_out_of_ddp
from .fixes.sharding import sharded_by
from .gradient_sync import GradientSyncChoice, StepReduction, choose_gradient_sync, graph_changes
from .plugin import UnslothAcceleratorPlugin
from .rank_first import several_ranks


# The modes of Accelerate that wrap a model in torch's DDP. In every other one (FSDP, DeepSpeed, Megatron, TP) and
# in Unsloth's native parallel modes this package stands down.
DDP_TYPES = (DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)


def runs_ddp(accelerator: Accelerator) -> bool:
    """Whether `accelerator` wraps models in torch's DDP over more than one rank."""
    return accelerator.distributed_type in DDP_TYPES and accelerator.num_processes > 1


def configure_ddp(
    model: nn.Module, plugin: UnslothAcceleratorPlugin, handler: DistributedDataParallelKwargs, user_set: set[str]
) -> GradientSyncChoice:
    """Chooses how gradients are averaged and writes the rule's DDP settings into `handler`.

    Args:
        model (`nn.Module`):
            The model before it is wrapped.
        plugin (`UnslothAcceleratorPlugin`):
            The user's choices.
        handler (`DistributedDataParallelKwargs`):
            Changed in place. Accelerate builds DDP from it.
        user_set (`set[str]`):
            The handler's fields that carry an explicit value of the user; they stay.

    Returns:
        `GradientSyncChoice`: The mode and its reason.

    Raises:
        ConfigurationError: If the model is split over several devices, or the choices contradict each other.
    """
    devices = {parameter.device for parameter in model.parameters() if parameter.requires_grad}
    if len(devices) > 1:
        raise ConfigurationError(
            f"`model` is split over {', '.join(sorted(map(str, devices)))}; with several ranks each one needs a whole "
            "copy on its own GPU. Load it without `device_map`, or launch one process."
        )
    choice = choose_gradient_sync(model, plugin, handler)
    overlapped = choice.mode == "overlapped"
    rule = {
        "find_unused_parameters": overlapped and graph_changes(model) is not None,
        "gradient_as_bucket_view": overlapped,
    }
    for name in rule.keys() - user_set:
        setattr(handler, name, rule[name])
    return choice


def say_choice(choice: GradientSyncChoice, handler: DistributedDataParallelKwargs, num_processes: int) -> None:
    """Announces the choice once, from rank 0."""
    detail = "" if choice.mode == "deferred" else f", find_unused_parameters={handler.find_unused_parameters}"
    announce("%d ranks, gradients %s: %s%s", num_processes, choice.mode, choice.reason, detail)


def announce_stand_down(mode: str) -> None:
    """Says that another mode than plain data parallelism trains the model, so that nothing of ours does."""
    announce("%s is in charge, unsloth_accel stands down", mode)


def check_ranks_train_together(accelerator: Accelerator) -> None:
    """Raises if the launcher started several ranks, but Accelerate would let each train as if it were alone.

    Raises:
        ConfigurationError: Naming both counts and what to set.
    """
    if several_ranks() and accelerator.num_processes == 1:
        raise ConfigurationError(
            f"`WORLD_SIZE` is {os.environ['WORLD_SIZE']}, but Accelerate sees 1 process: the ranks would train apart. "
            "Without a GPU set ACCELERATE_USE_CPU=true, or pass `use_cpu=True` to the training arguments."
        )


def leave_process_group_at_exit() -> None:
    """Destroys the process group when the interpreter exits, so that torch does not warn that nobody did."""
    atexit.register(lambda: dist.destroy_process_group() if dist.is_initialized() else None)


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
        kwargs.setdefault("cpu", several_ranks() and not torch.accelerator.is_available())
        super().__init__(*args, kwargs_handlers=self.plugin.to_handlers(kwargs_handlers), **kwargs)
        check_ranks_train_together(self)
        if runs_ddp(self):
            leave_process_group_at_exit()
            apply_loading_fixes()

    def prepare_model(
        self, model: nn.Module, device_placement: bool | None = None, evaluation_mode: bool = False
    ) -> Any:
        """As `Accelerator.prepare_model`; a trainable model is wrapped with the gradient synchronisation chosen."""
        trained = any(parameter.requires_grad for parameter in model.parameters())
        if evaluation_mode or not trained or not self._is_in_charge_of(model):
            return super().prepare_model(model, device_placement, evaluation_mode)
        choice = configure_ddp(model, self.plugin, self.ddp_handler, self._user_set_ddp)
        say_choice(choice, self.ddp_handler, self.num_processes)
        self.applied_fixes.append(apply_fixes(model))
        with left_out_of_ddp(model):
            prepared = super().prepare_model(model, device_placement, evaluation_mode)
        if choice.mode == "deferred" and isinstance(prepared, DistributedDataParallel):
            self._reductions.append(StepReduction(prepared, deferred=True))
        return prepared

    def _is_in_charge_of(self, model: nn.Module) -> bool:
        """Whether plain data parallelism trains the model; another mode is named once for each model."""
        mode = sharded_by(model)
        if runs_ddp(self) and mode is None:
            return True
        if self.num_processes > 1:
            announce_stand_down(mode or self.distributed_type.value)
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
