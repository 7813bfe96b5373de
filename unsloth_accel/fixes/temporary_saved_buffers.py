"""Gives each rank a folder of its own for the embeddings that Unsloth moves to disk."""

import functools
import os
import sys
from typing import Any

from ..patching import Undo, replace_attribute
from ..ranks.environment import rank
from .fix import Fix, Verdict


# Only loaded where there is a GPU; Unsloth's CPU backend does not offload.
MODULE = "unsloth.models._utils"


def probe(model: Any) -> Verdict:
    """Every release with `offload_to_disk` so far uses one path for all ranks."""
    if "unsloth" in sys.modules and MODULE not in sys.modules:
        return Verdict(False, "Unsloth's CPU backend does not move embeddings to disk")
    return Verdict(True, "all ranks that train `embed_tokens` or `lm_head` write and map the same file")


def apply(model: Any) -> Undo | None:
    """Puts the rank into the path. What was moved to disk before this is applied keeps the shared one."""
    module = sys.modules.get(MODULE)
    if module is None:
        return None
    original = module.offload_to_disk

    @functools.wraps(original)
    def offload_to_disk(
        W: Any, model: Any, name: str, temporary_location: str = "_unsloth_temporary_saved_buffers"
    ) -> Any:
        own = f"rank{rank()}"
        # The name, too: Unsloth appends the model's path, and one that is absolute replaces the location.
        return original(W, model, f"{own}-{name}", os.path.join(temporary_location, own))

    return replace_attribute(module, "offload_to_disk", offload_to_disk)


FIX = Fix(
    name="temporary_saved_buffers",
    symptom=(
        "Training `embed_tokens` / `lm_head` on N GPUs: FileExistsError for `_unsloth_temporary_saved_buffers`, or "
        '"Bus error" (SIGBUS) on one rank.'
    ),
    remedy="Each rank offloads to a folder of its own.",
    upstream="https://github.com/unslothai/unsloth/blob/main/unsloth/models/_utils.py",
    until=None,
    probe=probe,
    apply=apply,
    stage="loading",
)
