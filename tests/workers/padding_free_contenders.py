"""Contenders of the benchmark on rows side by side: `padding_free_contenders.py MODEL OUT WORK NAME [NAME ...]`.

In the trainers that Unsloth generates for GPUs, on the CPU, around a model of transformers, because Unsloth's CPU
backend knows no padding-free batches.
"""

import sys

import generated_trainers


generated_trainers.load("sft_trainer")

from start import write_result

from unsloth_accel.bench.comparison import Comparison
from unsloth_accel.bench.contenders import CONTENDERS
from unsloth_accel.bench.models import Start, load
from unsloth_accel.bench.training import train
from unsloth_accel.bench.workload import Workload


def main() -> None:
    path, out, text, *names = sys.argv[1:]
    work = Workload.parse(text)
    comparison = Comparison(model=path, works=(work,), contenders=tuple(names), warmup=1, steps=2, sequence=256)
    model, tokenizer = load("trl", comparison)
    start = Start(model)
    results = {}
    for name in names:
        start.restore()
        results[name] = train(CONTENDERS[name], model, tokenizer, work, comparison).figures
    write_result(out, results)


if __name__ == "__main__":
    main()
