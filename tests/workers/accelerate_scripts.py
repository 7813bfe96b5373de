"""Runs one of Accelerate's own test scripts with `UnslothAccelerator` for its class: `accelerate_scripts.py NAME`."""

import importlib
import sys

from unsloth_accel import UnslothAccelerator


name = sys.argv[1]
script = importlib.import_module(f"accelerate.test_utils.scripts.{name}")
script.Accelerator = UnslothAccelerator
sys.argv = sys.argv[:1]  # some of them parse the command line
script.main()
print(f"passed: {name}")
