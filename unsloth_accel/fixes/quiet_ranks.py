"""Lets Unsloth's modules print on rank 0 only."""

import os
import sys
from typing import Any

from .fix import Fix, Undo, Verdict, replace_attribute, undo_all


# The packages, and the trainers that Unsloth generates, each a module of its own.
_PACKAGES = ("unsloth", "unsloth_zoo")
_GENERATED = "Unsloth"


def probe(model: Any) -> Verdict:
    """Every release so far prints without looking at the rank."""
    return Verdict(True, "Unsloth prints what it patches and loads on every rank")


def apply(model: Any) -> Undo:
    """Gives each loaded module of Unsloth, on the ranks after the first, a `print` that drops its text."""
    if os.environ["RANK"] == "0":
        return lambda: None
    modules = [module for name, module in sys.modules.items() if _is_unsloth(name)]
    undos = [replace_attribute(module, "print", _drop) for module in modules]
    return lambda: undo_all(undos)


def _is_unsloth(name: str) -> bool:
    top = name.partition(".")[0]
    return top in _PACKAGES or top.startswith(_GENERATED)


def _drop(*values: object, **options: object) -> None:
    pass


FIX = Fix(
    name="quiet_ranks",
    symptom="Every line of Unsloth appears N times: N banners, N notes on padding and offloading.",
    remedy="Rank 0 prints; from the import on where this package imports Unsloth, the rest from the trainer on.",
    upstream="https://github.com/unslothai/unsloth/issues/3459",
    until=None,
    probe=probe,
    apply=apply,
)
