"""DDP's broadcasts of frozen weights, which `ddp/ignored.py` avoids."""

from typing import Any

from ..ddp.mode import parallel_mode
from .fix import Fix, Verdict


def probe(model: Any) -> Verdict:
    """Unsloth lets DDP ignore `inv_freq` buffers, fp8 and swapped weights; every other weight is broadcast."""
    mode = parallel_mode(model)
    if mode is not None:
        return Verdict(False, f"{mode} places the weights")
    if model is not None:
        from ..ddp.ignored import constant_tensors  # loads torch, which listing the fixes does without

        if not constant_tensors(model):
            return Verdict(False, "everything in the model is trained")
    return Verdict(True, "DDP broadcasts frozen weights when it is built, and buffers in every forward")


def in_place(model: Any) -> bool:
    """Whether DDP ignores constant tensors of the model, or of any that is alive."""
    from ..ddp.ignored import is_ignoring

    return is_ignoring(model)


FIX = Fix(
    name="frozen_weights",
    symptom=(
        "Before the first step each GPU is sent the whole frozen model that it has just loaded, then some buffers in "
        'every forward; QLoRA with `embed_tokens` or `lm_head`: "input module must be on the same type of devices".'
    ),
    remedy="Where a checksum shows that all ranks loaded the same, DDP ignores frozen weights and constant buffers.",
    upstream="https://github.com/pytorch/pytorch/issues/43690",
    until=None,
    probe=probe,
    apply=None,
    in_place=in_place,
)
