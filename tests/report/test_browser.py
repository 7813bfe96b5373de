"""The page in a real Chromium, on a desk and a phone, in the dark and on paper. `make browser-test` installs one.

The screenshots are in build/browser/report/. Those of docs/report.md are two of them, in 128 colours:
build/browser/report/alone/report-light.png and report-dark.png.
"""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from browser import find_chromium
from harness import ROOT
from report.events import long_run, other_run
from unsloth_accel.report import write_report
from unsloth_accel.report.palette import COLOURS


SCREENSHOTS = ROOT / "build" / "browser" / "report"
DRIVER = ROOT / "tests" / "workers" / "report_browser.mjs"
VIEWS = ("desktop-light", "desktop-dark", "phone-light", "phone-dark")


@pytest.fixture(scope="module", params=["alone", "compared"])
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """What the browser saw of a page, and where its screenshots are."""
    chromium = find_chromium()
    folder = tmp_path_factory.mktemp("runs")
    run = long_run(folder / "llama-balanced")
    other = other_run(folder / "llama-plain") if request.param == "compared" else None
    page = write_report(run, other).page
    screenshots = SCREENSHOTS / request.param
    screenshots.mkdir(parents=True, exist_ok=True)
    for old in screenshots.glob("*.png"):
        old.unlink()
    command = ["node", str(DRIVER), str(page), chromium, str(screenshots)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return SimpleNamespace(**json.loads(done.stdout), screenshots=screenshots)


def test_the_page_asks_for_nothing_and_complains_of_nothing(seen: SimpleNamespace) -> None:
    for view in VIEWS:
        assert seen.views[view]["requests"] == [], view
        assert seen.views[view]["complaints"] == [], view


def test_nothing_is_wider_than_the_screen_and_no_text_is_cut(seen: SimpleNamespace) -> None:
    for view in VIEWS:
        assert seen.views[view]["overflow"] == 0, view
        assert seen.views[view]["cut"] == [], view


def test_charts_are_side_by_side_on_a_desk_and_below_each_other_on_a_phone(seen: SimpleNamespace) -> None:
    columns = {view: len({chart["left"] for chart in seen.views[view]["charts"]}) for view in VIEWS}
    assert columns == {"desktop-light": 3, "desktop-dark": 3, "phone-light": 1, "phone-dark": 1}
    for view in VIEWS:
        assert len(seen.views[view]["charts"]) == 9
        assert min(chart["width"] for chart in seen.views[view]["charts"]) > 300
        assert seen.views[view]["smallest"] >= 8, "pixels that the smallest text is high"


def test_the_dark_page_is_dark_and_the_printed_one_light(seen: SimpleNamespace) -> None:
    for view in VIEWS:
        dark = view.endswith("dark")
        assert seen.views[view]["colours"] == {name: colours[dark] for name, colours in COLOURS.items()}
    assert seen.printed["ink"] == COLOURS["ink"][0], "also where the screen is dark"


def test_the_screenshots_are_there(seen: SimpleNamespace) -> None:
    names = {path.name for path in Path(seen.screenshots).glob("*.png")}
    assert names == {*(f"{view}.png" for view in VIEWS), "paper.png", "report-light.png", "report-dark.png"}
