"""Names the waste of DDP's broadcasts of frozen weights; `ddp/ignored.py` takes it away."""

from typing import Any

from ..ddp.mode import parallel_mode
from .fix import Fix, Verdict


def probe(model: Any) -> Verdict:
    """Unsloth keeps `inv_freq` buffers, fp8 and swapped weights out of DDP; every other weight is broadcast."""
    mode = parallel_mode(model)
    if mode is not None:
        return Verdict(False, f"{mode} places the weights")
    if model is not None:
        from ..ddp.ignored import constant_tensors  # loads torch, which listing the fixes does without

        if not constant_tensors(model):
            return Verdict(False, "everything in the model is trained")
    return Verdict(True, "DDP broadcasts frozen weights when it is built, and buffers in every forward")


FIX = Fix(
    name="frozen_weights",
    symptom=(
        "Before the first step each GPU is sent the whole frozen model that it has just loaded, then some buffers in "
        'every forward; QLoRA with `embed_tokens` or `lm_head`: "input module must be on the same type of devices".'
    ),
    remedy="Where a checksum shows all ranks loaded the same, DDP leaves frozen weights and constant buffers out.",
    upstream="https://github.com/pytorch/pytorch/issues/43690",
    until=None,
    probe=probe,
    apply=None,
)
