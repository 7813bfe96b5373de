"""Every fix, applying those that are needed, and taking them back."""

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from ..patching import Undo, undo_all
from ..ranks.environment import is_distributed
from ..ranks.logging import log_debug
from . import (
    activation_offload,
    device_map,
    frozen_weights,
    main_process_first,
    packed_attention,
    quiet_ranks,
    resume_on_cpu,
    save_once,
    temporary_saved_buffers,
    tokenize_once,
    training_banner,
    unsloth_telemetry,
)
from .fix import Fix


FIXES: tuple[Fix, ...] = (
    save_once.FIX,
    tokenize_once.FIX,
    main_process_first.FIX,
    temporary_saved_buffers.FIX,
    device_map.FIX,
    unsloth_telemetry.FIX,
    quiet_ranks.FIX,
    training_banner.FIX,
    resume_on_cpu.FIX,
    frozen_weights.FIX,
    packed_attention.FIX,
    activation_offload.FIX,
)

# How many handles hold each fix. A patch of the process is made once and taken back with the last of them, so that
# handles may be undone in any order.
_holders: Counter[str] = Counter()
_process_undo: dict[str, Undo] = {}
# What `apply_loading_fixes` holds.
_loading: "list[AppliedFixes]" = []


@dataclass(frozen=True)
class FixStatus:
    """What `unsloth-accel doctor` says of one fix.

    Args:
        name (`str`): The fix.
        state (`str`): "needed", "not needed" or "applied".
        reason (`str`): Why.
        symptom (`str`): What a user sees without it.
        upstream (`str`): Where the defect is, or is discussed.
        until (`str`, *optional*): The upstream version that ends it.
    """

    name: str
    state: str
    reason: str
    symptom: str
    upstream: str
    until: str | None


class AppliedFixes:
    """Takes back what one call of [`apply_fixes`] did: `undo()`, or leaving a `with` block.

    Attributes:
        names (`tuple[str, ...]`): The fixes that were applied.
    """

    def __init__(self, names: tuple[str, ...], undos: list[Undo]) -> None:
        self.names = names
        self._undos = undos

    def undo(self) -> None:
        """Restores every attribute, unless another handle still needs it. A second call does nothing."""
        undo_all(self._undos)
        self.names = ()

    def __enter__(self) -> "AppliedFixes":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.undo()


def apply_fixes(model: Any = None) -> AppliedFixes:
    """Applies every fix that this installation and `model` need. With one rank none is.

    Args:
        model (`torch.nn.Module`, *optional*): The model to train, after `get_peft_model`. Without it only what
            concerns the whole process is fixed.

    Returns:
        [`AppliedFixes`]: The handle that takes them back.
    """
    return _apply(FIXES, model)


def apply_loading_fixes() -> None:
    """Applies what has to be in place before a model is loaded, until [`undo_loading_fixes`].

    Called when an accelerated trainer class is imported or an `UnslothAccelerator` is made. Does nothing with one
    rank, the second time, and before Unsloth is imported: these fixes change its modules.
    """
    if not _loading and "unsloth" in sys.modules:
        _loading.append(_apply([fix for fix in FIXES if fix.stage == "loading"], None))


def undo_loading_fixes() -> None:
    """Takes back what [`apply_loading_fixes`] applied, unless a handle still needs it."""
    while _loading:
        _loading.pop().undo()


def _apply(fixes: Sequence[Fix], model: Any) -> AppliedFixes:
    if not is_distributed():
        return AppliedFixes((), [])
    needed = []
    for fix in fixes:
        verdict = fix.probe(model)
        log_debug("fix %s: %s, %s", fix.name, "needed" if verdict.needed else "not needed", verdict.reason)
        if verdict.needed:
            needed.append(fix)
    return AppliedFixes(tuple(fix.name for fix in needed), [_hold(fix, model) for fix in needed])


def _hold(fix: Fix, model: Any) -> Undo:
    undo_model = None
    if fix.apply is not None and fix.stage == "model":
        undo_model = fix.apply(model) if model is not None else None
    elif fix.apply is not None and not _holders[fix.name]:
        _process_undo[fix.name] = fix.apply(model)
    _holders[fix.name] += 1

    def release() -> None:
        _holders[fix.name] -= 1
        if undo_model is not None:
            undo_model()
        if not _holders[fix.name] and fix.name in _process_undo:
            _process_undo.pop(fix.name)()

    return release


def status(model: Any = None) -> list[FixStatus]:
    """Tells for each fix whether this installation, and `model`, need it and whether it is applied."""
    rows = []
    for fix in FIXES:
        verdict = fix.probe(model)
        state = "applied" if _holders[fix.name] else "needed" if verdict.needed else "not needed"
        rows.append(FixStatus(fix.name, state, verdict.reason, fix.symptom, fix.upstream, fix.until))
    return rows
