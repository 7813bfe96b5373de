"""The documents point at what is there: files, headings, tests and public names."""

import ast
import re
from pathlib import Path

import unsloth_accel
from harness import ROOT
from pages import code_blocks


def anchors(path: Path) -> set[str]:
    """As GitHub makes them of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(((?!http)[^)]+)\)", page.read_text()):
        name, _, anchor = target.partition("#")
        file = page if not name else (page.parent / name).resolve()
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_every_test_that_is_named_exists(page: Path) -> None:
    for file, name in re.findall(r"(tests/[\w/]+\.py)::(test_\w+)", page.read_text()):
        assert f"def {name}(" in (ROOT / file).read_text(), f"{file}::{name}"


def test_the_python_of_a_page_is_python_and_imports_what_there_is(page: Path) -> None:
    for block in code_blocks(page.read_text(), "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module == "unsloth_accel":
                assert {alias.name for alias in node.names} <= set(unsloth_accel.__all__)


def test_nearly_every_complaint_has_a_test() -> None:
    rows = [line for line in (ROOT / "docs" / "troubleshooting.md").read_text().splitlines() if line.startswith("| ")]
    complaints = [row for row in rows if not row.startswith("| what you see")]
    assert len(complaints) > 30
    assert [row for row in complaints if "::test_" not in row] == [
        row for row in complaints if row.endswith("| none |")
    ]


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    names = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert [name for name in sorted(names) if f"({name})" not in index] == []
