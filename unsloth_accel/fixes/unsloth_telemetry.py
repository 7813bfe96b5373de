"""Leaves Unsloth's telemetry to rank 0."""

import os
from typing import Any

from ..patching import Undo, replace_item
from ..ranks.environment import is_main_process
from .fix import Fix, Verdict


VARIABLE = "UNSLOTH_DISABLE_STATISTICS"


def probe(model: Any) -> Verdict:
    """Unsloth reads the variable at each `from_pretrained`."""
    if VARIABLE in os.environ:
        return Verdict(False, f"{VARIABLE} is set")
    return Verdict(True, "every rank calls Unsloth's telemetry, and after 120 s raises TimeoutError alone")


def apply(model: Any) -> Undo:
    """Switches it off on every rank but 0."""
    if is_main_process():
        return lambda: None  # in place, too: this is the rank that reports
    return replace_item(os.environ, VARIABLE, "1")


FIX = Fix(
    name="unsloth_telemetry",
    symptom=(
        '`from_pretrained` on N GPUs with a slow network: one rank raises "HuggingFace seems to be down after trying '
        'for 120 seconds" and the job dies or hangs.'
    ),
    remedy="Only rank 0 reports.",
    upstream="https://github.com/unslothai/unsloth/blob/main/unsloth/models/_utils.py",
    until=None,
    probe=probe,
    apply=apply,
    stage="loading",
)
