"""Lets Unsloth print, and transformers show its progress bars, on rank 0 only."""

import sys
from typing import Any

from ..patching import Undo, replace_attribute, undo_all
from ..ranks.environment import is_main_process
from .fix import Fix, Verdict


# The packages, and the trainers that Unsloth generates, each a module of its own.
_PACKAGES = ("unsloth", "unsloth_zoo")
_GENERATED = "Unsloth"


def probe(model: Any) -> Verdict:
    """Every release so far prints without looking at the rank."""
    return Verdict(True, "Unsloth prints what it patches and loads on every rank")


def apply(model: Any) -> Undo | None:
    """On the ranks after the first, drops what Unsloth's loaded modules print, and transformers' progress bars."""
    if is_main_process():
        return lambda: None  # in place, too: this is the rank that prints
    modules = [module for name, module in sys.modules.items() if _is_unsloth(name)]
    undos = [replace_attribute(module, "print", _drop) for module in modules]
    if "transformers" in sys.modules:
        undos += _hide_bars()
    return (lambda: undo_all(undos)) if undos else None


def _hide_bars() -> list[Undo]:
    from transformers.utils import logging

    if not logging.is_progress_bar_enabled():
        return []
    logging.disable_progress_bar()
    return [logging.enable_progress_bar]


def _is_unsloth(name: str) -> bool:
    top = name.partition(".")[0]
    return top in _PACKAGES or top.startswith(_GENERATED)


def _drop(*values: object, **options: object) -> None:
    pass


FIX = Fix(
    name="quiet_ranks",
    symptom="Every line of Unsloth appears N times: N banners, N notes on offloading, N bars of loading weights.",
    remedy="Rank 0 prints.",
    upstream="https://github.com/unslothai/unsloth/issues/3459",
    until=None,
    probe=probe,
    apply=apply,
    stage="loading",
)
