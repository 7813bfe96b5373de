"""The page: one HTML file with everything in it."""

from collections.abc import Sequence
from datetime import datetime, timezone

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from .. import __version__
from .charts import RUN_COLOURS, Chart, number_events
from .palette import variables
from .run import Run
from .summary import figures, steps_done
from .table import rows
from .words import duration, machine, model


TILES = (
    "Tokens/s",
    "Tokens/s per GPU",
    "Tokens/s per rank",  # on the CPU
    "Step time",
    "MFU",
    "Waiting",
    "Peak memory",
    "Training loss",
    "Evaluation loss",
)


def render(runs: Sequence[Run], charts: Sequence[Chart]) -> str:
    """Makes the page.

    Args:
        runs (`Sequence[Run]`): The run, and the one it is compared with, if any.
        charts (`Sequence[Chart]`): In the order of the page.

    Returns:
        `str`: HTML that loads nothing from anywhere.
    """
    environment = Environment(
        loader=PackageLoader("unsloth_accel.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"duration": duration, "steps": steps_done, "utc": _utc, "svg": Markup}
    environment.filters |= {"machine": machine, "model": model}
    return environment.get_template("page.html").render(
        runs=runs,
        compared=len(runs) > 1,
        colours=RUN_COLOURS,
        charts=charts,
        tiles=_tiles(runs),
        rows=rows(runs),
        events=number_events(runs),
        light=Markup(variables(dark=False)),
        dark=Markup(variables(dark=True)),
        version=__version__,
    )


def _tiles(runs: Sequence[Run]) -> list[dict[str, str]]:
    """The figures of the first run that matter most, and the ratio to the other one."""
    known = {row.name: row for row in rows(runs)}
    meanings = {figure.name: figure.meaning for figure in figures(runs[0])}
    tiles = []
    for name in TILES:
        if name in known and known[name].cells[0] != "not known":
            number, _, unit = known[name].cells[0].partition(" ")
            row = known[name]
            other = f"{row.ratio} {runs[1].name}" if row.ratio else ""
            tiles.append({"name": name, "number": number, "unit": unit, "other": other, "meaning": meanings[name]})
    return tiles


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, tz=timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
