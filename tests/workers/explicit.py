"""Runs `examples/unchanged.py` with one import changed: `UnslothAcceleratedSFTTrainer` as `SFTTrainer`."""

import sys
from pathlib import Path


script = Path(__file__).parents[2] / "examples" / "unchanged.py"
source = script.read_text()
before = "from trl import SFTConfig, SFTTrainer\n"
after = "from trl import SFTConfig\nfrom unsloth_accel import UnslothAcceleratedSFTTrainer as SFTTrainer\n"
assert before in source
sys.argv[0] = str(script)
exec(compile(source.replace(before, after), str(script), "exec"))
