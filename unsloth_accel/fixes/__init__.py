"""Compatibility fixes: each has a name, a probe, an undo and a death."""

from .fix import Fix, Verdict
from .registry import FIXES, AppliedFixes, FixStatus, apply_fixes, status


__all__ = ["FIXES", "AppliedFixes", "Fix", "FixStatus", "Verdict", "apply_fixes", "status"]
