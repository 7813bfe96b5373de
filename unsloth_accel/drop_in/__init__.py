"""Zero code change: after `enable_multi_gpu()` a script's own `trl.SFTTrainer(...)` makes the accelerated trainer."""

from .config import MultiGPUConfig
from .enable import MultiGPUHandle, disable_multi_gpu, enable_multi_gpu, get_multi_gpu_status
from .status import MultiGPUStatus


__all__ = [
    "MultiGPUConfig",
    "MultiGPUHandle",
    "MultiGPUStatus",
    "disable_multi_gpu",
    "enable_multi_gpu",
    "get_multi_gpu_status",
]
