"""Compatibility fixes: each has a name, a probe, an undo and a death."""

from .fix import Fix, Verdict
from .registry import (
    FIXES,
    AppliedFixes,
    FixStatus,
    apply_fixes,
    apply_loading_fixes,
    apply_restart_fixes,
    status,
    undo_loading_fixes,
)


__all__ = [
    "FIXES",
    "AppliedFixes",
    "Fix",
    "FixStatus",
    "Verdict",
    "apply_fixes",
    "apply_loading_fixes",
    "apply_restart_fixes",
    "status",
    "undo_loading_fixes",
]
