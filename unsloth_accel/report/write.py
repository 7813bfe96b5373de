"""Writes the report's files."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from ..errors import ConfigurationError
from .reading import read_run
from .run import Run
from .table import markdown


@dataclass(frozen=True)
class Report:
    """What was written.

    Args:
        page (`Path`): The HTML file.
        pictures (`tuple[Path, ...]`): A PNG file for each chart.
        markdown (`str`): The table of figures.
    """

    page: Path
    pictures: tuple[Path, ...]
    markdown: str


def write_report(folder: Path, compare: Path | None = None, output: Path | None = None) -> Report:
    """Makes one page of what a run measured, or of two runs side by side.

    Args:
        folder (`Path`): The output folder of a training run, with `metrics.jsonl` in it.
        compare (`Path`, *optional*): That of another run.
        output (`Path`, *optional*):
            The HTML file; the PNG files go into a folder beside it that has its name without `.html`. Defaults to
            `report.html` in `folder`.

    Returns:
        `Report`: The files, and the table as Markdown.

    Raises:
        ConfigurationError: If a folder holds no metrics, `output` lies in no folder, or the libraries that draw are
            not installed.

    Example:

    ```python
    >>> from pathlib import Path

    >>> from unsloth_accel.report import write_report

    >>> print(write_report(Path("outputs")).markdown)
    ```
    """
    _check_installed()
    folders = [each for each in (folder, compare) if each is not None]
    runs = _told_apart([read_run(each) for each in folders], folders)
    page = output or folder / "report.html"
    if page.is_dir() or not page.suffix:  # the pictures' folder has its name without the suffix
        raise ConfigurationError(f"`output` must be a file with a suffix, as report.html; got {str(page)!r}.")
    if not page.parent.is_dir():
        raise ConfigurationError(f"`output` must lie in an existing folder; there is no {page.parent}.")
    from .charts import draw_charts
    from .page import render

    charts = draw_charts(runs)
    page.write_text(render(runs, charts), encoding="utf-8")
    pictures = page.with_suffix("")
    pictures.mkdir(exist_ok=True)
    for chart in charts:
        (pictures / f"{chart.name}.png").write_bytes(chart.png)
    return Report(page, tuple(pictures / f"{chart.name}.png" for chart in charts), markdown(runs))


def _check_installed() -> None:
    missing = [name for name in ("jinja2", "matplotlib") if find_spec(name) is None]
    if missing:
        raise ConfigurationError(f"A report needs {' and '.join(missing)}: run `pip install 'unsloth-accel[report]'`.")


def _told_apart(runs: list[Run], folders: Sequence[Path]) -> list[Run]:
    """Two runs are called by their folders; where these have one name, by the folders above, too."""
    if len({run.name for run in runs}) == len(runs):
        return runs
    names = ["/".join(folder.resolve().parts[-2:]) for folder in folders]
    return [replace(run, name=name) for run, name in zip(runs, names, strict=True)]
