"""The page shows what the result files hold, and nothing else."""

import runpy

from harness import ROOT


def test_the_tables_of_the_page_are_those_of_the_result_files() -> None:
    made = runpy.run_path(str(ROOT / "benchmarks" / "tables.py"))
    page = (ROOT / "docs" / "performance.md").read_text()
    assert made["comparison"]() in (ROOT / "docs" / "performance_tables.md").read_text()
    sections = dict(part.split("\n", 1) for part in page.split("\n## ")[1:])
    assert made["overview"]() in sections["Results"]
    assert made["step_profile"]() in sections["Results"]
    assert made["scaling"]() in sections["One GPU and several"]
    assert made["starts"]() in sections["Time to the first step"]


def test_a_gpu_of_several_is_compared_with_one_of_the_same_memory() -> None:
    made = runpy.run_path(str(ROOT / "benchmarks" / "tables.py"))
    run = {"model": "3b", "finetuning": "lora", "sequence": 2048, "work": "4x1:fixed:padding-free", "compiled": False}
    run |= {"device": "NVIDIA H200", "contender": "auto", "card_gib": None}
    one, two = {**run, "world_size": 1, "tokens_per_s": 100}, {**run, "world_size": 2, "tokens_per_s": 190}
    held = {**two, "card_gib": 15, "tokens_per_s": 20}
    made["scaling"].__globals__["_by_machine"] = lambda: [[one, two, held]]
    *_, line = made["scaling"]().splitlines()
    assert line == "| 3b lora, 4x1:fixed | auto | 100 | 2 x H200 | 95 | 95.0 % |"
