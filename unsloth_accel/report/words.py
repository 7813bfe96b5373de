"""Numbers and events in words."""

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any


def duration(seconds: float) -> str:
    """`3.2 s`, `4 min 05 s`, `2 h 07 min`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60:,} h {minutes % 60:02d} min"


def counted(number: int, noun: str) -> str:
    """`1 step`, `1,200 steps`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def model(start: Mapping[str, Any]) -> str:
    """Its name on the Hub; of one in a folder, the folder's name, because pages are shown to others."""
    name = str(start["model"])
    return PurePath(name).name if PurePath(name).is_absolute() else name


def machine(start: Mapping[str, Any]) -> str:
    """`2 x NVIDIA H200`, or `2 ranks on CPU`."""
    if start["gpu"]:
        return f"{start['world_size']:,} × {start['gpu']}"
    return f"{counted(start['world_size'], 'rank')} on CPU"


def describe_start(start: Mapping[str, Any]) -> str:
    """Where training starts, and with how many rows a step."""
    return f"{machine(start)}, {counted(start['global_batch'], 'row')} in a step"


def describe_restart(start: Mapping[str, Any], before: Mapping[str, Any], lost: int, idle: float) -> str:
    """What the restart cost, and what it changed."""
    how = f"resumed at step {start['step']:,}" if start["step"] else "started again"
    text = f"{how} after {duration(idle)}"
    if lost:
        text += f"; {counted(lost, 'step')} computed again"
    if machine(start) != machine(before):
        text += f"; now {machine(start)}, before {machine(before)}"
    return text


def describe_split(line: Mapping[str, Any]) -> str:
    """Which ranks ran out of memory, and what all do from there on."""
    ranks = ", ".join(map(str, line["ranks"]))
    noun = "rank" if len(line["ranks"]) == 1 else "ranks"
    what = f"{counted(line['pieces'], 'piece')} a step" if line["pieces"] else "every layer is recomputed"
    return f"out of memory on {noun} {ranks}: {what} from here on"
