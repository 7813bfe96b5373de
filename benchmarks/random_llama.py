"""Saves a Llama of random weights and a small tokenizer: `python benchmarks/random_llama.py 3b FOLDER`."""

import sys

from unsloth_accel.bench.random_llama import save


if __name__ == "__main__":
    save(*sys.argv[1:])
