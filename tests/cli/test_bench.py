import json
import subprocess
import sys
from pathlib import Path

import pytest

from unsloth_accel.cli.bench import CONTENDERS


@pytest.mark.long
def test_bench_prints_a_table_on_a_machine_without_a_gpu(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from unsloth_accel.cli.main import main; raise SystemExit(main())", "bench"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out.jsonl")], cwd=tmp_path, capture_output=True, text=True, timeout=540
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [one["contender"] for one in results] == 3 * list(CONTENDERS)
    assert all(one["world_size"] == 2 for one in results)
    table = done.stdout[done.stdout.index("tiny lora r=16, 2x4:lognormal:padded, 2 x ") :]
    rows = table.splitlines()[4 : 4 + len(CONTENDERS)]
    assert [row.split(" | ")[0] for row in rows] == [f"| {name}" for name in CONTENDERS]
    assert "`auto` found: " in table
