"""`make docs` writes a page that has every public name, what it takes and what it raises."""

import os
import re
import subprocess
import sys
from dataclasses import fields

import pytest

import unsloth_accel
from harness import ON_CPU, ROOT
from unsloth_accel import UnslothAcceleratorPlugin


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
    page = (ROOT / "build" / "docs" / "unsloth_accel.html").read_text()
    anchors = set(re.findall(r'\bid="([^"]+)"', page))
    text = re.sub(r"<[^>]+>", "", page)
    assert set(unsloth_accel.__all__) <= anchors
    assert {f"UnslothAcceleratorPlugin.{field.name}" for field in fields(UnslothAcceleratorPlugin)} <= anchors
    for said in ("stall_timeout (float, optional, defaults to 110.0)", "Raises"):
        assert said in text
