"""`make docs` writes a page that has every public name, what it takes and what it raises."""

import os
import subprocess
import sys
from dataclasses import fields
from html.parser import HTMLParser

import pytest

import unsloth_accel
from harness import ON_CPU, ROOT
from unsloth_accel import UnslothAcceleratorPlugin


class Page(HTMLParser):
    """The anchors of a page, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.anchors |= {value for key, value in attrs if key == "id" and value is not None}

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.cpu
def test_every_public_name_has_its_place_with_what_it_takes_and_raises() -> None:
    pytest.importorskip("pdoc")
    made = subprocess.run(
        [sys.executable, ROOT / "docs" / "reference.py"],
        env=os.environ | ON_CPU | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    assert "does not resolve" not in made.stderr
    page = Page()
    page.feed((ROOT / "build" / "docs" / "unsloth_accel.html").read_text())
    assert set(unsloth_accel.__all__) <= page.anchors
    assert {f"UnslothAcceleratorPlugin.{field.name}" for field in fields(UnslothAcceleratorPlugin)} <= page.anchors
    for said in ("stall_timeout (float, optional, defaults to 110.0)", "Raises"):
        assert said in page.text
