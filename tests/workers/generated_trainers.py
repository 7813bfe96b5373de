"""Has Unsloth generate and bind the trainers that it trains with on a GPU, on a machine without one."""

import os


def load(*trainers: str) -> None:
    """To be called before trl is imported. Unsloth's own loading and kernels still need a GPU.

    Args:
        trainers (`str`): Which modules of `trl.trainer`; without any all 14, as Unsloth does, which takes 10 s.
    """
    os.environ["UNSLOTH_ALLOW_CPU"] = "1"
    import unsloth

    os.environ["UNSLOTH_ALLOW_CPU"] = "0"
    import torch

    torch.cuda.get_device_name = lambda *args: "none"
    from unsloth.models import rl

    if trainers:
        rl.patch_trl_rl_trainers = lambda: [rl._patch_trl_rl_trainers(name) for name in trainers]
    rl.PatchFastRL(None, None)
    import unsloth.trainer

    unsloth.trainer._patch_trl_trainer()
