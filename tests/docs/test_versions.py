"""docs/versions.md says what the code checks and what `benchmarks/versions.py` found."""

import re
import runpy
from collections.abc import Mapping
from pathlib import Path

from packaging.version import Version

from unsloth_accel.imports import FLOORS


ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "versions.md").read_text()
VERSIONS = runpy.run_path(str(ROOT / "benchmarks" / "versions.py"))
RESULTS = VERSIONS["read_results"]()


def is_below_a_floor(versions: Mapping[str, str]) -> bool:
    return any(Version(versions[name]).release < Version(floor).release for name, floor in FLOORS.items())


def test_the_page_has_the_floors() -> None:
    rows = re.findall(r"^\| (`.*?) \| ([\d.]+) \|", PAGE, re.MULTILINE)
    assert {package: floor for names, floor in rows for package in re.findall(r"`(\w+)`", names)} == FLOORS


def test_the_page_has_the_tables_of_the_result_file() -> None:
    assert VERSIONS["table"](RESULTS) in PAGE


def test_every_set_was_run_and_the_newest_passes_all_checks() -> None:
    assert RESULTS.keys() == VERSIONS["SETS"].keys()
    assert all(check["ok"] for check in RESULTS[FLOORS["unsloth"]]["checks"].values())


def test_a_set_is_refused_in_one_error_exactly_where_it_is_below_a_floor() -> None:
    for line in RESULTS.values():
        message = line["checks"]["floors"]["why"]
        assert ("pip install --upgrade" in message) == is_below_a_floor(line["versions"]), line["versions"]
