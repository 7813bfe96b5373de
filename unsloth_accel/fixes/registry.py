"""Every fix, applying those that are needed, and taking them back."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from weakref import WeakKeyDictionary

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
    restarted_ranks,
    resume_on_cpu,
    save_once,
    temporary_saved_buffers,
    tokenize_once,
    training_banner,
    unsloth_telemetry,
)
from .fix import Fix


FIXES: tuple[Fix, ...] = (
    restarted_ranks.FIX,
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


@dataclass
class _Patch:
    """What one fix changed, in the process or in a model, and how many handles still need it."""

    undo: Undo
    holders: int = 0


# By the fix's name. A patch is made once and taken back with the last of its handles, so these may be undone in any
# order. That of a model ends with the model, which nothing here keeps alive.
_of_process: dict[str, _Patch] = {}
_of_models: WeakKeyDictionary[Any, dict[str, _Patch]] = WeakKeyDictionary()
# What `apply_restart_fixes` and `apply_loading_fixes` hold.
_restart: "list[AppliedFixes]" = []
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

    It does not keep the model alive.

    Attributes:
        names (`tuple[str, ...]`): The fixes that are in place and that this takes back.
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


def apply_restart_fixes() -> None:
    """Applies what ranks that were started anew need before their process group exists, until
    [`undo_loading_fixes`]. Does nothing the second time."""
    if not _restart:
        _restart.append(_apply([fix for fix in FIXES if fix.stage == "restart"], None))


def apply_loading_fixes() -> None:
    """Applies what has to be in place before a model is loaded, until [`undo_loading_fixes`].

    Called when an accelerated trainer class is imported or an `UnslothAccelerator` is made. Does nothing with one
    rank, the second time, and before Unsloth is imported: these fixes change its modules.
    """
    apply_restart_fixes()
    if not _loading and "unsloth" in sys.modules:
        _loading.append(_apply([fix for fix in FIXES if fix.stage == "loading"], None))


def undo_loading_fixes() -> None:
    """Takes back what [`apply_loading_fixes`] applied, unless a handle still needs it."""
    for held in (_loading, _restart):
        while held:
            held.pop().undo()


def _apply(fixes: Sequence[Fix], model: Any) -> AppliedFixes:
    if not is_distributed():
        return AppliedFixes((), [])
    needed = []
    for fix in fixes:
        verdict = fix.probe(model)
        log_debug("fix %s: %s, %s", fix.name, "needed" if verdict.needed else "not needed", verdict.reason)
        if verdict.needed:
            needed.append(fix)
    releases = {fix.name: release for fix in needed if (release := _hold(fix, model)) is not None}
    return AppliedFixes(tuple(releases), list(releases.values()))


def _hold(fix: Fix, model: Any) -> Undo | None:
    """Applies `fix` where it is not in place yet. Returns what releases it, or None if there was nothing to change."""
    if fix.apply is None or (fix.stage == "model" and model is None):
        return None
    patches = _of_models.setdefault(model, {}) if fix.stage == "model" else _of_process
    if fix.name not in patches:
        undo = fix.apply(model)
        if undo is None:
            return None
        patches[fix.name] = _Patch(undo)
    patches[fix.name].holders += 1
    return lambda: _release(fix.name, patches)


def _release(name: str, patches: dict[str, _Patch]) -> None:
    patches[name].holders -= 1
    if not patches[name].holders:
        patches.pop(name).undo()


def status(model: Any = None) -> list[FixStatus]:
    """Tells for each fix whether this installation, and `model`, need it and whether it is in place now.

    Args:
        model (`torch.nn.Module`, *optional*): Without it, a fix of models counts as applied where any model has it.

    Returns:
        `list[FixStatus]`: One for each fix.
    """
    rows = []
    for fix in FIXES:
        verdict = fix.probe(model)
        state = "applied" if _is_in_place(fix, model) else "needed" if verdict.needed else "not needed"
        rows.append(FixStatus(fix.name, state, verdict.reason, fix.symptom, fix.upstream, fix.until))
    return rows


def _is_in_place(fix: Fix, model: Any) -> bool:
    if fix.in_place is not None:
        return fix.in_place(model)
    if fix.stage != "model":
        return fix.name in _of_process
    models = _of_models.values() if model is None else [_of_models.get(model, {})]
    return any(fix.name in patches for patches in models)
