"""The contract of a compatibility fix."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from ..patching import Undo


# When a fix has to be in place: before there is a process group, before a model is loaded, while a trainer lives, or
# on the model that is trained.
Stage = Literal["restart", "loading", "training", "model"]


@dataclass(frozen=True)
class Verdict:
    """Whether a fix is needed, and why.

    Args:
        needed (`bool`): Whether what is installed, and the model if one was given, have the defect.
        reason (`str`): One clause for the user.
    """

    needed: bool
    reason: str


@dataclass(frozen=True)
class Fix:
    """One defect of an upstream package on several ranks, and its remedy.

    Args:
        name (`str`): Short name, that of its module where it has one of its own.
        symptom (`str`): What a user sees without the fix, in their words.
        remedy (`str`): What the fix changes.
        upstream (`str`): Where the defect is, or is discussed.
        until (`str`, *optional*): The upstream version that ends it, "package version"; None while there is none.
        probe (`Callable[[Any], Verdict]`): Decides by version or signature whether the fix is needed for a model, or
            for the installation where the model is None.
        apply (`Callable[[Any], Undo | None]`, *optional*): Applies the fix and returns its undo, or None where it
            found nothing to change. The undo must not keep the model alive. `apply` is None where nothing is patched,
            because our trainers do it another way.
        stage (`"restart"`, `"loading"`, `"training"` or `"model"`, *optional*, defaults to `"training"`): When it has
            to be in place. The first three change the process; `"model"` changes the model that `apply` is given.
        in_place (`Callable[[Any], bool]`, *optional*): Only where `apply` is None: whether our trainers do it now for
            a model, or for any where the model is None.
    """

    name: str
    symptom: str
    remedy: str
    upstream: str
    until: str | None
    probe: Callable[[Any], Verdict]
    apply: Callable[[Any], Undo | None] | None
    stage: Stage = "training"
    in_place: Callable[[Any], bool] | None = None
