"""Runs `unchanged.py` with the settings of `multi_gpu.yaml`, and shows what was decided:

    accelerate launch --config_file "$(unsloth-accel config path ddp)" examples/configured.py \
        --model unsloth/Llama-3.2-1B

What has no field there is in the environment: UNSLOTH_ACCEL_GRADIENT_SYNC=overlapped, UNSLOTH_ACCEL_PLAN=keep ...
"""

import runpy
from pathlib import Path

from unsloth_accel import MultiGPUConfig, enable_multi_gpu, get_multi_gpu_status


HERE = Path(__file__).parent

config = MultiGPUConfig.from_yaml(HERE / "multi_gpu.yaml")
with enable_multi_gpu(**config.to_dict()):
    script = runpy.run_path(str(HERE / "unchanged.py"), run_name="__main__")  # its trainer is there while it is held
    status = get_multi_gpu_status()
if status.rank == 0:
    print(status)
