"""Brings checkpointed activations back from the host a layer ahead, where Unsloth would wait for each."""

import importlib
import os
from typing import Any

from ..patching import Undo, replace_attribute
from .fix import Fix, Verdict


VARIABLE = "UNSLOTH_GC_OFFLOAD_BACKEND"


def probe(model: Any) -> Verdict:
    """Under DDP, hooks move the activations of what `FastModel` loads, not Unsloth's own checkpointing."""
    if VARIABLE in os.environ:
        return Verdict(False, f"{VARIABLE} is set")
    if model is None:
        return Verdict(False, "it concerns a model that FastModel or FastVisionModel loads under DDP")
    if not getattr(model, "_unsloth_vlm_gc_non_reentrant", False):
        return Verdict(False, "the model's checkpointing brings them back ahead by itself")
    if getattr(model, "_unsloth_gradient_checkpointing", None) != "unsloth":
        return Verdict(False, "activations stay on the GPU")
    return Verdict(True, "the backward of each layer waits for its activations to come back from the host")


def apply(model: Any) -> Undo:
    """Gives Unsloth the offloader that it would make for `UNSLOTH_GC_OFFLOAD_BACKEND=unsloth_stream`."""
    checkpointing = importlib.import_module("unsloth_zoo.gradient_checkpointing")
    offloader = checkpointing.NonReentrantActivationOffloader(stream_mode=True)
    return replace_attribute(checkpointing, "NONREENTRANT_OFFLOADER", offloader)


FIX = Fix(
    name="activation_offload",
    symptom=(
        'A model of `FastModel` or `FastVisionModel` trains more slowly under DDP: with checkpointing "unsloth" each '
        "layer's backward waits until its activations are back from the host."
    ),
    remedy="Unsloth's own prefetching offloader: activations come back while the layer before is recomputed.",
    upstream="https://github.com/unslothai/unsloth-zoo/blob/main/unsloth_zoo/gradient_checkpointing.py",
    until=None,
    probe=probe,
    apply=apply,
)
