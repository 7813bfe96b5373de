"""Started on more ranks than there are GPUs: says whether the refusal came before CUDA was initialized."""

import torch

from unsloth_accel import ConfigurationError
from unsloth_accel.imports import load_unsloth


try:
    load_unsloth()
except ConfigurationError:
    print("GPU touched" if torch.cuda.is_initialized() else "no GPU touched")
    raise
