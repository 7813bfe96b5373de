"""Unsloth on many GPUs with plain `accelerate launch`.

Importing this package imports none of unsloth, trl, transformers, accelerate or torch: each public name is loaded from
its module when it is first used, so a script still chooses when Unsloth patches those libraries.
"""

from importlib import import_module
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .accelerator import UnslothAccelerator
    from .ddp.reports import RankReport
    from .drop_in import (
        MultiGPUConfig,
        MultiGPUHandle,
        MultiGPUStatus,
        disable_multi_gpu,
        enable_multi_gpu,
        get_multi_gpu_status,
    )
    from .errors import ConfigurationError, GradientSyncError, PeerError, UnslothAccelError, VersionError
    from .launch import LaunchError, config_path, launch_ddp_training
    from .plugin import UnslothAcceleratorPlugin
    from .ranks.run_once import run_once
    from .step_plan import PlanCandidate, StepPlan, StepPlanRecord
    from .trainers import UnslothAcceleratedSFTTrainer, UnslothAcceleratedTrainerMixin, accelerated

__version__ = "0.1.0"

__all__ = [
    "ConfigurationError",
    "GradientSyncError",
    "LaunchError",
    "MultiGPUConfig",
    "MultiGPUHandle",
    "MultiGPUStatus",
    "PeerError",
    "PlanCandidate",
    "RankReport",
    "StepPlan",
    "StepPlanRecord",
    "UnslothAccelError",
    "UnslothAcceleratedSFTTrainer",
    "UnslothAcceleratedTrainerMixin",
    "UnslothAccelerator",
    "UnslothAcceleratorPlugin",
    "VersionError",
    "accelerated",
    "config_path",
    "disable_multi_gpu",
    "enable_multi_gpu",
    "get_multi_gpu_status",
    "launch_ddp_training",
    "run_once",
]

_MODULES = {
    "ConfigurationError": "errors",
    "GradientSyncError": "errors",
    "LaunchError": "launch",
    "MultiGPUConfig": "drop_in",
    "MultiGPUHandle": "drop_in",
    "MultiGPUStatus": "drop_in",
    "PeerError": "errors",
    "PlanCandidate": "step_plan",
    "RankReport": "ddp.reports",
    "StepPlan": "step_plan",
    "StepPlanRecord": "step_plan",
    "UnslothAccelError": "errors",
    "UnslothAcceleratedSFTTrainer": "trainers",
    "UnslothAcceleratedTrainerMixin": "trainers",
    "UnslothAccelerator": "accelerator",
    "UnslothAcceleratorPlugin": "plugin",
    "VersionError": "errors",
    "accelerated": "trainers",
    "config_path": "launch",
    "disable_multi_gpu": "drop_in",
    "enable_multi_gpu": "drop_in",
    "get_multi_gpu_status": "drop_in",
    "launch_ddp_training": "launch",
    "run_once": "ranks.run_once",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
