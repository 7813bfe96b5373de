"""Lets an optimizer's state be loaded for a CPU device that has an index."""

import functools
from typing import Any

from ..imports import cpu_was_asked_for
from ..patching import Undo, replace_attribute
from .fix import Fix, Verdict


def probe(model: Any) -> Verdict:
    """Only ranks on CPUs have the device `cpu:0`."""
    import torch

    if torch.accelerator.is_available() and not cpu_was_asked_for():
        return Verdict(False, "the ranks run on accelerators")
    return Verdict(True, "Accelerate calls the device of a rank on CPU `cpu:0`, which torch.load does not know")


def apply(model: Any) -> Undo:
    """Wraps `torch.load`: memory has no index, so `cpu:0` is `cpu`."""
    import torch

    original = torch.load

    @functools.wraps(original)
    def load(f: Any, map_location: Any = None, *args: Any, **kwargs: Any) -> Any:
        if isinstance(map_location, torch.device) and map_location.type == "cpu":
            map_location = "cpu"
        return original(f, map_location, *args, **kwargs)

    return replace_attribute(torch, "load", load)


FIX = Fix(
    name="resume_on_cpu",
    symptom=(
        "`resume_from_checkpoint` with several ranks on CPU: \"don't know how to restore data location of "
        'torch.storage.UntypedStorage (tagged with cpu:0)".'
    ),
    remedy="torch.load takes a CPU device with an index for the CPU.",
    upstream="https://github.com/huggingface/transformers/blob/main/src/transformers/trainer.py",
    until=None,
    probe=probe,
    apply=apply,
)
