"""docs/versions.md says what the code checks."""

import re
from pathlib import Path

from unsloth_accel.imports import FLOORS


def test_the_page_has_the_floors():
    page = (Path(__file__).parents[1] / "docs" / "versions.md").read_text()
    rows = re.findall(r"^\| (`.*?) \| ([\d.]+) \|", page, re.MULTILINE)
    assert {package: floor for names, floor in rows for package in re.findall(r"`(\w+)`", names)} == FLOORS
