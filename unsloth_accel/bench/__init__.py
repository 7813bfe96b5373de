"""The same rows, trained by each contender in turn: what `unsloth-accel bench` and `benchmarks/compare.py` run."""
