"""What the documents say is what the files say."""

import runpy
from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]


def test_the_tables_are_those_of_the_result_files() -> None:
    tables = runpy.run_path(str(ROOT / "benchmarks" / "tables.py"))
    page = (ROOT / "docs" / "gradient_sync.md").read_text()
    assert tables["host_costs"]() in (ROOT / "docs" / "host_costs.md").read_text()
    assert tables["other_trainers"]() in (ROOT / "docs" / "trainers.md").read_text()
    assert tables["step_times"]() in page
    assert tables["packed_attention"]() in page
    assert tables["matrix"]() in page
    assert tables["four_gpus"]() in page
    assert tables["model_families"]() in page
    recovery = (ROOT / "docs" / "fault-tolerance.md").read_text()
    assert tables["faults"]() in recovery
    assert tables["faults_on_gpus"]() in recovery
    assert tables["damaged_checkpoints"]() in recovery
    plan = (ROOT / "docs" / "step_plan.md").read_text()
    assert tables["imbalance"]() in plan
    assert tables["planning"]() in plan
