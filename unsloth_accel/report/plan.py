"""The step plan that a run says it followed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .words import counted


@dataclass(frozen=True)
class Candidate:
    """A way to compute a step that was tried.

    Args:
        name (`str`): Its pieces and the layers that it keeps.
        microseconds (`float`): What a token took.
        chosen (`bool`): Whether it is the plan.
    """

    name: str
    microseconds: float
    chosen: bool


@dataclass(frozen=True)
class Plan:
    """How steps are computed.

    Args:
        text (`str`): In words.
        reason (`str`): Why; empty if the run did not say.
        candidates (`tuple[Candidate, ...]`): Those that were measured, the fastest first.
    """

    text: str
    reason: str = ""
    candidates: tuple[Candidate, ...] = ()

    def __str__(self) -> str:
        return f"{self.text}: {self.reason}" if self.reason else self.text


def read_plan(written: Mapping[str, Any] | str) -> Plan:
    """Reads what a run was asked for (`"keep"`, `"auto"`, a `StepPlan`), or the `StepPlanRecord` of what it does."""
    if isinstance(written, str):
        return Plan({"auto": "to be found while training"}.get(written, "as the arguments say"))
    plan = written.get("plan", written)
    measured = [each for each in written.get("candidates", ()) if each["microseconds"] is not None]
    return Plan(
        text=_name(plan) + (", rows balanced" if plan["balance"] else ""),
        reason=written.get("reason", ""),
        candidates=tuple(
            Candidate(_name(each), each["microseconds"], _same(each, plan))
            for each in sorted(measured, key=lambda each: float(each["microseconds"]))
        ),
    )


def _name(plan: Mapping[str, Any]) -> str:
    batches = "micro-batches" if plan["pieces"] is None else counted(plan["pieces"], "piece")
    return f"{batches}, {plan['layers_kept']} layers kept"


def _same(candidate: Mapping[str, Any], plan: Mapping[str, Any]) -> bool:
    return all(candidate[name] == plan[name] for name in ("pieces", "layers_kept"))
