"""Zero code change: after `enable_multi_gpu()` a script's own `trl.SFTTrainer(...)` makes the accelerated trainer.

How the trainer is reached, and why that way, is in `redirect.py`.
"""

import logging
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any
from weakref import ref

from ..errors import ConfigurationError
from ..fixes import apply_fixes, undo_loading_fixes
from ..fixes import status as fix_status
from ..patching import Undo, undo_all
from ..ranks.environment import rank, was_launched, world_size
from ..ranks.idle_gpus import log_idle_gpus
from ..ranks.logging import log_once
from .config import DDPBackend, MultiGPUConfig
from .redirect import redirect, sft_trainer_classes
from .settings import put_settings
from .status import Decision, MultiGPUStatus


if TYPE_CHECKING:
    from ..trainers import UnslothAcceleratedSFTTrainer

_active: "MultiGPUHandle | None" = None


def enable_multi_gpu(
    num_gpus: int | None = None,
    batch_size_per_gpu: int | None = None,
    ddp_backend: DDPBackend | None = None,
    enable_memory_optimization: bool | None = None,
    enable_gradient_checkpointing: bool | None = None,
    find_unused_parameters: bool | None = None,
    debug: bool | None = None,
) -> "MultiGPUHandle":
    """Makes `trl.SFTTrainer` the accelerated one, however and whenever a script imports it. Imports Unsloth.

    A second call replaces the settings of the first. Under plain `python` it says how to use the GPUs that stay idle.

    Args:
        num_gpus (`int`, *optional*): See [`MultiGPUConfig`], as for the others.
        batch_size_per_gpu (`int`, *optional*): Replaces `per_device_train_batch_size`.
        ddp_backend (`str`, *optional*): `"nccl"` or `"gloo"`; checked against the process group.
        enable_memory_optimization (`bool`, *optional*): `plan="auto"` or `"keep"`.
        enable_gradient_checkpointing (`bool`, *optional*): Replaces `gradient_checkpointing`.
        find_unused_parameters (`bool`, *optional*): For DDP's own reducer.
        debug (`bool`, *optional*): Logs more, and checks every collective.

    Returns:
        [`MultiGPUHandle`]: Use it in a `with` block, or call `disable()`, or leave it in effect.

    Raises:
        ConfigurationError: For a setting that is not allowed, or another world size than `num_gpus`.

    Example:

    ```python
    >>> from unsloth_accel import enable_multi_gpu, get_multi_gpu_status

    >>> with enable_multi_gpu(batch_size_per_gpu=4):  # doctest: +SKIP
    ...     trl.SFTTrainer(model=model, args=args, train_dataset=rows).train()
    ...     print(get_multi_gpu_status())
    ```
    """
    global _active
    config = MultiGPUConfig(
        num_gpus=num_gpus,
        batch_size_per_gpu=batch_size_per_gpu,
        ddp_backend=ddp_backend,
        enable_memory_optimization=enable_memory_optimization,
        enable_gradient_checkpointing=enable_gradient_checkpointing,
        find_unused_parameters=find_unused_parameters,
        debug=debug,
    )
    _check_world_size(config)
    if _active is not None:
        log_once("enable_multi_gpu was called again: the new settings replace those of the first call")
        _active.disable()
    _active = MultiGPUHandle(config)
    log_idle_gpus(config.num_gpus, lambda: config.launch_config)
    return _active


def disable_multi_gpu() -> None:
    """Restores what `enable_multi_gpu` replaced, and undoes the fixes for loading a model."""
    if _active is not None:
        _active.disable()
    else:
        undo_loading_fixes()


def get_multi_gpu_status() -> MultiGPUStatus:
    """Tells how this process takes part in multi-GPU training, what was decided and why.

    Returns:
        [`MultiGPUStatus`]: Print it, or store its `to_json()`.
    """
    import torch.distributed as dist

    initialized = dist.is_available() and dist.is_initialized()
    return MultiGPUStatus(
        enabled=_active is not None,
        world_size=world_size(),
        rank=rank(),
        backend=dist.get_backend() if initialized else None,
        devices=_devices(),
        decisions=tuple(_active.decisions()) if _active is not None else (),
        fixes=tuple(fix.name for fix in fix_status() if fix.state == "applied"),
        peak_memory_gib=_active.peak_memory_gib() if _active is not None else (),
    )


class MultiGPUHandle:
    """What `enable_multi_gpu` changed, and how to undo it. It keeps no trainer and no model alive.

    Args:
        config ([`MultiGPUConfig`]): The settings.
    """

    def __init__(self, config: MultiGPUConfig) -> None:
        self.config = config
        self._trainer: Callable[[], UnslothAcceleratedSFTTrainer | None] = lambda: None
        self._changed: tuple[Decision, ...] = ()
        self._undos: list[Undo] = _debug() if config.debug else []
        self._undos += [redirect(owner, self._initialize) for owner in sft_trainer_classes()]
        # The fixes for loading have to be in place before the script loads its model.
        self._undos.append(apply_fixes().undo)

    def disable(self) -> None:
        """Restores everything. A trainer that was made before stays of its class. A second call does nothing."""
        global _active
        undo_all(self._undos)
        undo_loading_fixes()
        if _active is self:
            _active = None

    def __enter__(self) -> "MultiGPUHandle":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.disable()

    def decisions(self) -> list[Decision]:
        """What was changed in the last trainer that was made and, while it is there, what it decided."""
        trainer = self._trainer()
        if trainer is None:
            return list(self._changed)
        sync, plan = trainer.gradient_sync, trainer.step_plan
        chosen = [] if sync is None else [Decision("gradient_sync", sync.mode, sync.reason)]
        return [*self._changed, *chosen, Decision("step_plan", str(plan.plan), plan.reason)]

    def peak_memory_gib(self) -> tuple[float, ...]:
        """Each rank's peak as of the last optimizer step of the last trainer, else this rank's alone."""
        import torch

        if not torch.cuda.is_initialized():
            return ()
        trainer = self._trainer()
        steps = [] if trainer is None else trainer.step_reports
        if steps:
            return tuple(report.peak_memory_gib for report in steps[-1])
        return (torch.cuda.max_memory_allocated() / 2**30,)

    def _initialize(self, trainer: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """Initialises `trainer`, already of an accelerated class, with the settings put into its arguments."""
        from ..trainers import UnslothAcceleratedSFTTrainer
        from ..trainers.arguments import bound_arguments

        given = bound_arguments(type(trainer), tuple(args), kwargs)
        script_arguments = given.get("args")
        arguments, self._changed = put_settings(self.config, script_arguments, given.get("model"))
        # Where the script put them, so that Python refuses what it would refuse of a plain trainer.
        args = [arguments if value is script_arguments else value for value in args]
        kwargs = {name: arguments if value is script_arguments else value for name, value in kwargs.items()}
        kwargs.setdefault("plugin", self.config.to_plugin())
        UnslothAcceleratedSFTTrainer.__init__(trainer, *args, **kwargs)
        self._trainer = ref(trainer)  # a trainer, and its model, live as long as the script holds them
        self._undos.append(trainer.applied_fixes.undo)  # of every trainer, and before those of `__init__`
        self._check_backend()

    def _check_backend(self) -> None:
        import torch.distributed as dist

        wanted = self.config.ddp_backend
        if wanted is not None and dist.is_initialized() and dist.get_backend() != wanted:
            raise ConfigurationError(
                f"`ddp_backend={wanted!r}`, but the process group runs on {dist.get_backend()!r}. Launch with the "
                f"config {self.config.launch_config!r}, or set `ddp_backend={wanted!r}` in the script's SFTConfig."
            )


def _debug() -> list[Undo]:
    import torch.distributed as dist

    logger = logging.getLogger("unsloth_accel")
    level, checks = logger.level, dist.get_debug_level()
    logger.setLevel(logging.DEBUG)
    dist.set_debug_level(dist.DebugLevel.DETAIL)
    return [lambda: logger.setLevel(level), lambda: dist.set_debug_level(checks)]


def _check_world_size(config: MultiGPUConfig) -> None:
    if was_launched() and config.num_gpus not in (None, world_size()):
        raise ConfigurationError(
            f"`num_gpus={config.num_gpus}`, but the launcher started {world_size()} ranks. Launch with "
            f"`--num_processes {config.num_gpus}`, or leave `num_gpus` out."
        )


def _devices() -> tuple[str, ...]:
    import torch

    names = range(torch.cuda.device_count())
    if torch.cuda.is_initialized():  # asking for names would initialise CUDA
        return tuple(f"cuda:{index} {torch.cuda.get_device_name(index)}" for index in names)
    return tuple(f"cuda:{index}" for index in names) or ("cpu",)
