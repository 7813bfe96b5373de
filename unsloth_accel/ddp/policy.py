"""When gradients are averaged over the ranks, and how DDP is set up for it."""

import re
from dataclasses import dataclass
from typing import Literal

from accelerate import Accelerator
from accelerate.utils import (
    DDPCommunicationHookType,
    DistributedDataParallelKwargs,
    DynamoBackend,
    is_compiled_module,
)
from torch import nn

from ..errors import ConfigurationError
from ..plugin import UnslothAcceleratorPlugin
from ..ranks.logging import log_once


# Up to this many bytes of gradient one reduction after backward costs less than what overlapping needs.
# Measured: docs/gradient_sync.md has the runs and their command.
DEFERRED_BYTES_LIMIT = 2 * 2**30


@dataclass(frozen=True)
class GradientSyncChoice:
    """How gradients are averaged, and why."""

    mode: Literal["deferred", "overlapped"]
    reason: str
    compiled: bool = False  # then DDP's reducer works inside the compiled graph, and ranks exchange no reports


def trainable_bytes(model: nn.Module) -> int:
    """Bytes of gradient that one rank contributes to a reduction."""
    return sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)


def graph_changes(model: nn.Module) -> str | None:
    """What makes the set of parameters that get a gradient differ between batches, adapters or ranks, if anything."""
    config = getattr(model, "config", None)
    if config is None:
        return None
    if len(getattr(model, "peft_config", ())) > 1:
        return "several adapters"
    if any(getattr(config, key, None) is not None for key in ("vision_config", "audio_config")):
        return "a tower that text-only batches skip"
    # Numbered experts are modules of their own. transformers has all experts of a layer in one tensor, and every batch
    # uses some of them, so that it gets a gradient on every rank.
    if any(p.requires_grad and re.search(r"expert.*\.\d+\.", name) for name, p in model.named_parameters()):
        return "experts that a rank may not route to"
    return None


def choose_gradient_sync(
    model: nn.Module,
    plugin: UnslothAcceleratorPlugin,
    handler: DistributedDataParallelKwargs,
    *,
    compiled: bool = False,
) -> GradientSyncChoice:
    """Chooses between one reduction after backward and DDP's reducer.

    Args:
        model (`nn.Module`):
            The model before it is wrapped. Its parameters' `requires_grad` says what is trained.
        plugin (`UnslothAcceleratorPlugin`):
            The user's choices; an explicit one wins.
        handler (`DistributedDataParallelKwargs`):
            The handler Accelerate will build DDP from, with the user's values in it.
        compiled (`bool`, *optional*, defaults to `False`):
            Whether `torch.compile` takes in the whole model, and DDP with it.

    Returns:
        `GradientSyncChoice`: The mode and the reason to log.

    Raises:
        ConfigurationError: If `gradient_sync="deferred"` meets a communication hook or static graph in a passed
            handler, or `torch.compile`.
    """
    hooked = handler.comm_hook != DDPCommunicationHookType.NO
    if plugin.gradient_sync == "deferred" and hooked:
        raise ConfigurationError(
            f"`gradient_sync='deferred'` does not run the communication hook {handler.comm_hook!s} of the passed "
            "DistributedDataParallelKwargs. Remove the hook, or set `gradient_sync='overlapped'`."
        )
    if plugin.gradient_sync == "deferred" and handler.static_graph:
        raise ConfigurationError(
            "`gradient_sync='deferred'` does not use DDP's reducer, for which `static_graph=True` was passed. Leave "
            "`static_graph` out, or set `gradient_sync='overlapped'`."
        )
    if compiled:
        return _choose_compiled(plugin)
    changes = graph_changes(model)
    # DDP marks as ready what it finds unused. Reentrant checkpointing hides what is used, and marks it a second time.
    search = f"; the model has {changes}, so checkpointing must have use_reentrant=False" if changes else ""
    if plugin.gradient_sync == "deferred":
        return GradientSyncChoice("deferred", "`gradient_sync='deferred'` was asked for")
    if plugin.gradient_sync == "overlapped":
        return GradientSyncChoice("overlapped", f"`gradient_sync='overlapped'` was asked for{search}")
    if hooked or handler.static_graph:
        return GradientSyncChoice("overlapped", f"a communication hook or static graph was asked for{search}")
    megabytes = f"{trainable_bytes(model) / 2**20:.0f} MiB of gradients"
    large = trainable_bytes(model) > DEFERRED_BYTES_LIMIT
    if changes is not None:  # whatever the size, because that holds with every checkpointing
        size = f"; {megabytes} are reduced after backward" if large else ""
        return GradientSyncChoice("deferred", f"the model has {changes}{size}")
    if any(getattr(module, "sparse", False) for module in model.modules()):
        return GradientSyncChoice("overlapped", "the gradients of an embedding are sparse")
    if large:
        return GradientSyncChoice("overlapped", f"{megabytes}, reduced while backward runs")
    return GradientSyncChoice("deferred", f"{megabytes}, one reduction is cheapest")


def _choose_compiled(plugin: UnslothAcceleratorPlugin) -> GradientSyncChoice:
    if plugin.gradient_sync == "deferred":
        raise ConfigurationError(
            "`gradient_sync='deferred'` does not work with `torch_compile` or `--dynamo_backend`, which compile DDP's "
            "reducer into the graph. Leave `gradient_sync` at 'auto', or do not compile the whole model: Unsloth "
            "compiles its layers in any case."
        )
    reason = "torch.compile takes in DDP's reducer; ranks exchange no reports"
    return GradientSyncChoice("overlapped", reason, compiled=True)


def configure_ddp(
    model: nn.Module, plugin: UnslothAcceleratorPlugin, accelerator: Accelerator, user_set: set[str]
) -> GradientSyncChoice:
    """Chooses how gradients are averaged and writes what follows for DDP into Accelerate's handler.

    Args:
        model (`nn.Module`):
            The model before it is wrapped.
        plugin (`UnslothAcceleratorPlugin`):
            The user's choices.
        accelerator (`Accelerator`):
            Builds DDP from its `ddp_handler`, which is changed in place.
        user_set (`set[str]`):
            The handler's fields that carry an explicit value of the user; they stay.

    Returns:
        `GradientSyncChoice`: The mode and its reason.

    Raises:
        ConfigurationError: If the model is split over several devices, or the choices contradict each other.
    """
    check_is_whole(model)
    handler = accelerator.ddp_handler = accelerator.ddp_handler or DistributedDataParallelKwargs()
    plugin.write_into(handler)
    choice = choose_gradient_sync(model, plugin, handler, compiled=_is_compiled(model, accelerator))
    overlapped = choice.mode == "overlapped"
    rule = {
        "find_unused_parameters": overlapped and graph_changes(model) is not None,
        "gradient_as_bucket_view": overlapped,
    }
    for name in rule.keys() - user_set:
        setattr(handler, name, rule[name])
    return choice


def check_is_whole(model: nn.Module) -> None:
    """Refuses a model whose trained parameters lie on several devices.

    Raises:
        ConfigurationError: Naming the devices, and what trains a model that is too big for one card.
    """
    devices = {parameter.device for parameter in model.parameters() if parameter.requires_grad}
    if len(devices) > 1:
        raise ConfigurationError(
            f"`model` is split over {', '.join(sorted(map(str, devices)))}; with several ranks each one needs a whole "
            "copy on its own GPU. Load it without `device_map`. If it is too big for one card: load it in 4 bit "
            "(`load_in_4bit=True`, QLoRA); or let Unsloth shard it (`UNSLOTH_FSDP2=1 accelerate launch ...`); or "
            "launch one process (`python script.py`), which may split it."
        )


def _is_compiled(model: nn.Module, accelerator: Accelerator) -> bool:
    return bool(accelerator.state.dynamo_plugin.backend != DynamoBackend.NO or is_compiled_module(model))


def log_policy(choice: GradientSyncChoice, handler: DistributedDataParallelKwargs, num_processes: int) -> None:
    """Announces the choice once, from rank 0."""
    detail = "" if choice.mode == "deferred" else f", find_unused_parameters={handler.find_unused_parameters}"
    log_once("%d ranks, gradients %s: %s%s", num_processes, choice.mode, choice.reason, detail)
