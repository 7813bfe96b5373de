"""The page and its pictures: all numbers in them, nothing outside of them."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from report.events import BEGAN, Training, long_run, other_run, plan_found, start, step, write
from unsloth_accel.errors import ConfigurationError
from unsloth_accel.report import Report, read_run, write_report
from unsloth_accel.report import write as write_module
from unsloth_accel.report.palette import COLOURS
from unsloth_accel.report.table import rows


CHARTS = ("loss", "throughput", "step_time", "memory", "utilization", "plan", "tokens", "waiting", "time")


class Page(HTMLParser):
    """What a page loads, its words, and its charts by their titles."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.loads: list[str] = []
        self.words: list[str] = []
        self.ids: list[str] = []
        self.feed(self.source)
        self.charts = dict(re.findall(r'<svg role="img" aria-label="([^"]*)"(.*?)</svg>', self.source, re.DOTALL))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "img", "iframe", "object", "embed", "video", "audio", "base"):
            self.loads.append(tag)
        for name, value in attrs:
            if name in ("src", "srcset", "href", "xlink:href", "action", "data") and not str(value).startswith("#"):
                self.loads.append(str(value))
            if name == "id":
                self.ids.append(str(value))

    def handle_data(self, data: str) -> None:
        self.words.append(" ".join(data.split()))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return long_run(folder / "balanced"), other_run(folder / "plain")


@pytest.fixture(scope="module")
def alone(folders: tuple[Path, Path]) -> Report:
    return write_report(folders[0])


@pytest.fixture(scope="module")
def compared(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Report:
    return write_report(folders[0], folders[1], tmp_path_factory.mktemp("output") / "both.html")


def test_the_files_are_in_the_folder_of_the_run(alone: Report, folders: tuple[Path, Path]) -> None:
    assert alone.page == folders[0] / "report.html"
    assert alone.pictures == tuple(folders[0] / "report" / f"{name}.png" for name in CHARTS)
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in alone.pictures)


def test_the_page_holds_every_figure_and_the_markdown_the_same(alone: Report, folders: tuple[Path, Path]) -> None:
    words = Page(alone.page).words
    table = rows([read_run(folders[0])])
    assert len(table) == 22, "everything is known of this run"
    for row in table:
        assert row.name in words
        assert row.cells[0] in words
        assert f"| {row.name} | {row.cells[0]} |\n" in alone.markdown


def test_the_head_says_what_was_trained_where(alone: Report) -> None:
    words = Page(alone.page).words
    for word in (
        "example/llama-3b", "2 × Example GPU", "1,200 steps", "2026-09-21 14:13 UTC", "torch 2.11.0",
    ):  # fmt: skip
        assert word in words


def test_the_page_and_the_comparison_load_nothing(alone: Report, compared: Report) -> None:
    for report in (alone, compared):
        page = Page(report.page)
        assert page.loads == ["data:,"], "the empty icon, so that no browser asks for one"
        assert "default-src 'none'" in page.source
        assert re.findall(r"url\((?!#)|@import", page.source) == []


def test_every_chart_is_in_the_page(alone: Report) -> None:
    page = Page(alone.page)
    assert list(page.charts) == [
        "Loss",
        "Throughput, tokens/s",
        "Step time, ms",
        "Peak memory, GiB",
        "FLOPs utilization, % of the dense peak",
        "Step plan, µs a token",
        "Tokens of each rank, a step",
        "Waiting of each rank, % of the step",
        "Time, from start to end",
    ]
    assert "per GPU" in page.charts["Throughput, tokens/s"]
    for title in ("Tokens of each rank, a step", "Waiting of each rank, % of the step"):
        assert "var(--rank-0)" in page.charts[title]
        assert "var(--rank-1)" in page.charts[title]


def test_the_candidates_of_the_plan_are_there_with_their_times(alone: Report) -> None:
    chart = Page(alone.page).charts["Step plan, µs a token"]
    said = re.findall(r">([^<>]+)</text>", chart)
    for candidate in plan_found()["candidates"]:
        assert str(candidate["microseconds"]) in said
    assert said.index("1 piece, 28 kept") < said.index("8 pieces, 0 kept"), "the fastest comes first"
    assert chart.count("var(--this-run)") == 1, "one of them was taken"


def test_events_have_the_same_numbers_in_table_and_charts(alone: Report) -> None:
    page = Page(alone.page)
    events = [event for event in read_run(alone.page.parent).events if event.kind not in ("start", "end")]
    assert [event.kind for event in events] == ["plan", "restart", "plan", "split", "stop", "restart", "plan"]
    for number, event in enumerate(events, start=1):
        row = rf'--{event.kind}\)">{number}</b></td><td class="tight">{event.kind}</td>.*{re.escape(event.text)}'
        assert re.search(row, page.source)
    for title in list(page.charts)[:5] + list(page.charts)[6:8]:
        badges = re.findall(r'<text style="[^"]*fill: var\(--card\)[^>]*>([^<]+)</text>', page.charts[title])
        assert badges == ["5-7", "4", "2-3", "1"], title


def test_charts_have_no_colour_of_their_own(alone: Report, compared: Report) -> None:
    for report in (alone, compared):
        for title, chart in Page(report.page).charts.items():
            assert re.findall(r"#[0-9a-f]{6}", chart) == [], title
            assert set(re.findall(r"var\(--([\w-]+)\)", chart)) <= COLOURS.keys()


def test_each_colour_is_told_from_the_others_and_readable() -> None:
    assert len({light for light, _ in COLOURS.values()}) == len(COLOURS), "in the SVG they stand for their names"
    quiet = {"page", "card", "line", "grid"}
    for name in COLOURS.keys() - quiet:
        for mode in (0, 1):
            # WCAG 2.2: 4.5 for text, 3 for lines (https://www.w3.org/TR/WCAG22/#contrast-minimum, #non-text-contrast)
            least = 4.5 if name in ("ink", "muted") else 3
            assert contrast(COLOURS[name][mode], COLOURS["card"][mode]) >= least, (name, mode)


def contrast(one: str, other: str) -> float:
    """https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio"""
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_a_comparison_shows_both_runs(compared: Report, folders: tuple[Path, Path]) -> None:
    page = Page(compared.page)
    for row in rows([read_run(folder) for folder in folders]):
        assert {row.name, *row.cells} <= set(page.words)
        assert not row.ratio or row.ratio in page.words
    assert "Step plan of balanced, µs a token" in page.charts
    assert "Step plan of plain, µs a token" not in page.charts, "it kept the plan of its arguments"
    for title in ("Loss", "Throughput, tokens/s", "Step time, ms", "Peak memory, GiB", "Time, from start to end"):
        assert {"var(--this-run)", "var(--other-run)"} <= set(re.findall(r"var\(--[\w-]+\)", page.charts[title]))
        assert ">balanced</text>" in page.charts[title]
        assert ">plain</text>" in page.charts[title]


def test_the_same_run_gives_the_same_page(alone: Report, folders: tuple[Path, Path], tmp_path: Path) -> None:
    again = write_report(folders[0], output=tmp_path / "again.html")
    assert again.page.read_text() == alone.page.read_text()


def test_only_what_is_known_is_drawn(tmp_path: Path) -> None:
    """On the CPU, of a trainer that counts no tokens and logged nothing yet."""
    unknown = {"mfu": None, "hfu": None, "peak_memory_gib": [0, 0], "tokens": [0, 0], "computed_tokens": [0, 0]}
    write(tmp_path, [start(gpu=None), *(step(number, BEGAN + number, **unknown) for number in (1, 2, 3))])
    report = write_report(tmp_path)
    assert [picture.stem for picture in report.pictures] == ["step_time", "waiting", "time"]
    assert "Tokens" not in report.markdown
    assert "Imbalance" not in report.markdown
    assert "Events" not in Page(report.page).words


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("ranks", [1, 3, 8, 64])
def test_few_ranks_have_a_line_each_and_many_a_band(tmp_path: Path, ranks: int) -> None:
    training = Training(ranks=ranks)
    training.start()
    training.train(1, 90)
    chart = Page(write_report(write(tmp_path, training.lines)).page).charts["Tokens of each rank, a step"]
    lines = len(re.findall(r"stroke: var\(--rank-", chart)) // 2  # one more in the legend
    assert lines == (ranks if ranks <= 8 else 1)
    assert ("median of 64 ranks" in chart) == (ranks == 64)


@pytest.mark.filterwarnings("error")
def test_a_run_that_knows_much_is_compared_with_one_that_knows_little(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    unknown = {"mfu": None, "hfu": None, "peak_memory_gib": [0, 0], "tokens": [0, 0], "computed_tokens": [0, 0]}
    little = write(tmp_path / "little", [start(gpu=None), step(1, BEGAN + 1, **unknown)])
    charts = Page(write_report(folders[0], little).page).charts
    assert Page(write_report(little, folders[0]).page).charts.keys() == charts.keys()


def test_what_a_run_calls_itself_is_text_and_not_html(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    folder = write(tmp_path / "a & b", [start(model=evil, plan="keep"), step(1, BEGAN + 1)])
    other = write(tmp_path / "<i>", [start(), step(1, BEGAN + 1)])
    page = Page(write_report(folder, other).page)
    assert evil in page.words
    assert page.loads == ["data:,"]
    assert "<i>" in page.words


def test_a_model_in_a_folder_is_called_by_its_name(tmp_path: Path) -> None:
    write(tmp_path, [start(model="/home/me/models/small_llama"), step(1, BEGAN + 1)])
    report = write_report(tmp_path)
    assert "small_llama" in Page(report.page).words
    assert "/home/me" not in report.page.read_text() + report.markdown


def test_two_folders_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = [write(tmp_path / name / "outputs", [start(), step(1, BEGAN + 1)]) for name in ("before", "after")]
    assert "| before/outputs | after/outputs | ratio |" in write_report(*runs).markdown


def test_what_is_missing_is_named_with_the_command_that_installs_it(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write_module, "find_spec", lambda name: None if name == "matplotlib" else name)
    with pytest.raises(ConfigurationError, match=r"needs matplotlib: run `pip install 'unsloth-accel\[report\]'`"):
        write_report(folders[0])


def test_an_output_in_no_folder_is_an_error(folders: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="`output` must lie in an existing folder; there is no .*/nowhere"):
        write_report(folders[0], output=tmp_path / "nowhere" / "report.html")
    for output in (tmp_path / "report", tmp_path):
        with pytest.raises(ConfigurationError, match="`output` must be a file with a suffix, as report.html; got"):
            write_report(folders[0], output=output)
