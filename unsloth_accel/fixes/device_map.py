"""Loads each rank's model on the rank's own GPU, also where an old script names the first one."""

import functools
import sys
from typing import Any

from ..ddp.mode import parallel_mode
from ..patching import Undo, replace_attribute
from ..ranks.logging import log_once
from .fix import Fix, Verdict


MODULE = "unsloth.models.loader"


def probe(model: Any) -> Verdict:
    """Unsloth pins "auto", "balanced" and "sequential" to the rank's GPU since 2026.9.6, but obeys a named device."""
    if "unsloth" in sys.modules and MODULE not in sys.modules:
        return Verdict(False, "Unsloth's CPU backend takes no device map")
    mode = parallel_mode(model)
    if mode is not None:
        return Verdict(False, f"{mode} places the weights")
    return Verdict(True, '`device_map="cuda:0"` puts the models of all ranks on the first GPU')


def apply(model: Any) -> Undo | None:
    """Makes Unsloth choose the GPU where the script names the first one, which can only be meant for one rank."""
    module = sys.modules.get(MODULE)
    if module is None:
        return None
    original = module.is_automatic_device_map

    @functools.wraps(original)
    def is_automatic_device_map(device_map: Any) -> bool:
        if names_first_gpu(device_map):
            log_once("`device_map=%r` would put every rank on the first GPU: each rank loads on its own", device_map)
            return True
        return bool(original(device_map))

    return replace_attribute(module, "is_automatic_device_map", is_automatic_device_map)


def names_first_gpu(device_map: Any) -> bool:
    """Whether a device map puts the whole model on GPU 0: "cuda:0", 0, or {"": either}.

    Args:
        device_map: What a script gave to `from_pretrained`.

    Returns:
        `bool`: False also for a map that names another device or several.
    """
    if isinstance(device_map, dict):
        return set(device_map) == {""} and names_first_gpu(device_map[""])
    return str(device_map) in ("cuda:0", "0")


FIX = Fix(
    name="device_map",
    symptom=(
        'An old script with `device_map="cuda:0"` on N GPUs: out of memory on GPU 0, or "You can\'t train a model '
        "that has been loaded in 8-bit or 4-bit precision on a different device than the one you're training on\"."
    ),
    remedy="Each rank loads on its own GPU.",
    upstream="https://github.com/unslothai/unsloth/issues/3459",
    until=None,
    probe=probe,
    apply=apply,
    stage="loading",
)
