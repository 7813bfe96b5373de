"""What the example for Ray trains, under `accelerate launch`: `ray_train.py OUT` and the arguments of the example."""

import sys
from pathlib import Path

from start import write_result


sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
OUT = sys.argv.pop(1)

from ray_train import make_trainer, parse_arguments


trainer = make_trainer(parse_arguments())
trainer.train()
write_result(OUT, {"logged": [entry for entry in trainer.state.log_history if "loss" in entry]})
