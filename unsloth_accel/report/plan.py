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
        time (`float`): What it took, in the plan's unit.
        chosen (`bool`): Whether it is the plan.
    """

    name: str
    time: float
    chosen: bool


@dataclass(frozen=True)
class Plan:
    """How steps are computed.

    Args:
        text (`str`): In words.
        reason (`str`): Why; empty if the run did not say.
        unit (`str`): Of the candidates' times.
        candidates (`tuple[Candidate, ...]`): Those that were measured, the fastest first.
    """

    text: str
    reason: str = ""
    unit: str = "ms a step"
    candidates: tuple[Candidate, ...] = ()

    def __str__(self) -> str:
        return f"{self.text}: {self.reason}" if self.reason else self.text


def read_plan(written: Mapping[str, Any] | str | None) -> Plan:
    """Reads a plan, or the record of one, from a line of the metrics."""
    if not isinstance(written, Mapping):
        return Plan({"auto": "to be found while training"}.get(str(written), "as the arguments say"))
    record = {**written, **(written.get("plan") or {})}
    tried = record.get("candidates") or ()
    time = "ms" if any("ms" in each for each in tried) else "microseconds"
    measured = [each for each in tried if each.get(time) is not None]
    return Plan(
        text=", ".join([_name(record), *_more(record)]),
        reason=record.get("reason") or "",
        unit="ms a step" if time == "ms" else "µs a token",
        candidates=tuple(
            Candidate(_name(each), float(each[time]), _same(each, record))
            for each in sorted(measured, key=lambda each: float(each[time]))
        ),
    )


def _name(plan: Mapping[str, Any]) -> str:
    pieces = plan.get("pieces")
    batches = "micro-batches" if pieces is None else counted(pieces, "piece")
    return f"{batches}, {plan.get('layers_kept', 0)} layers kept"


def _more(plan: Mapping[str, Any]) -> list[str]:
    return ["rows balanced"] if plan.get("balance") else []


def _same(candidate: Mapping[str, Any], plan: Mapping[str, Any]) -> bool:
    return all(candidate.get(name) == plan.get(name) for name in ("pieces", "layers_kept"))
