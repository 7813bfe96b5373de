"""Saves a Qwen2.5-VL of random weights and its processor: `python benchmarks/random_vision.py 3b FOLDER`."""

import sys

from unsloth_accel.bench.random_vision import save


if __name__ == "__main__":
    save(*sys.argv[1:])
