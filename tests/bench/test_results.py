"""The page shows what the result files hold, and nothing else."""

import runpy

from harness import ROOT


def test_the_tables_of_the_page_are_those_of_the_result_files() -> None:
    made = runpy.run_path(str(ROOT / "benchmarks" / "tables.py"))
    page = (ROOT / "docs" / "performance.md").read_text()
    sections = dict(part.split("\n", 1) for part in page.split("\n## ")[1:])
    assert made["comparison"]() in sections["Results"]
    assert made["scaling"]() in sections["One GPU and several"]
    assert made["starts"]() in sections["Time to the first step"]
