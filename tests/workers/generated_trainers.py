"""Has Unsloth generate and bind the trainers that it trains with on a GPU, on a machine without one."""

import os


def load() -> None:
    """To be called before trl is imported. Unsloth's own loading and kernels still need a GPU."""
    os.environ["UNSLOTH_ALLOW_CPU"] = "1"
    import unsloth

    os.environ["UNSLOTH_ALLOW_CPU"] = "0"
    import torch

    torch.cuda.get_device_name = lambda *args: "none"
    from unsloth.models.rl import PatchFastRL

    PatchFastRL(None, None)
    import unsloth.trainer

    unsloth.trainer._patch_trl_trainer()
