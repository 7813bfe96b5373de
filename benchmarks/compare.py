"""Compares ways to train the same rows on the same GPUs, and prints a table for each workload.

    python benchmarks/random_llama.py 3b 3b
    python benchmarks/compare.py --model 3b --work 2x4:lognormal 4x1:fixed --contenders varlen keep auto --nproc 2
    python benchmarks/random_vision.py 3b vl-3b
    python benchmarks/compare.py --model vl-3b --work 2x4:lognormal:images --contenders varlen keep auto --nproc 2

A work is `ROWSxACCUMULATION:LENGTHS[:BATCHING]`: the rows of a rank's micro-batch, its micro-batches in a step, fixed,
lognormal or pareto, and padding-free (the default), packed, padded or images (padded, half of the rows with an image;
for a model of random_vision.py, and without `rebalance`, `trl` and `liger`). Contenders:

    plain          Unsloth under `accelerate launch`, as installed
    varlen         the same with one attention launch per layer, which torch >= 2.12, flash-attn or xformers bring
    token-balance  varlen with UNSLOTH_TOKEN_BALANCE=1
    rebalance      varlen with transformers' train_sampling_strategy="batch_rebalance"
    keep           ours, plan="keep"
    auto           ours, with the plan that plan="auto" has found in a run before the first round
    deferred, overlapped          ours, "keep" with that `gradient_sync`
    balanced, pieces, planned     ours, with a StepPlan that is given: balanced; besides, one piece; besides, all kept
    trl            TRL and PEFT, without Unsloth
    liger          the same with Liger kernels

Contenders of Unsloth and ours alternate in one launch (A B A B), because the speed of a machine drifts; each run
begins with the same weights. `trl` and `liger` follow in a launch of their own each, without Unsloth being imported;
they pad, because without flash-attn TRL has no other way. The device is waited for after the first step, after the
warm-up and at the end of a run, and not in between. Set UNSLOTH_COMPILE_DISABLE=1 for all not to compile.

Prints a `RESULT` line of JSON for each run as it ends, from rank 0. `ready_s` is from the launch to the loaded model,
`first_step_s` from there to the end of the run's first step; with the same `--cache FOLDER` given twice, the first run
of a launch is a cold start and then a warm one.
"""

import argparse
from pathlib import Path

from unsloth_accel.bench.compare import compare
from unsloth_accel.bench.comparison import Comparison
from unsloth_accel.bench.contenders import CONTENDERS
from unsloth_accel.bench.table import tables
from unsloth_accel.bench.workload import Workload


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", required=True, help="the folder of a model, as random_llama.py and random_vision.py make it"
    )
    parser.add_argument("--ft", default="lora", choices=("lora", "qlora", "full"))
    parser.add_argument("--rank", type=int, default=16, help="of the adapters")
    parser.add_argument("--work", nargs="+", required=True, type=Workload.parse)
    parser.add_argument("--contenders", nargs="+", required=True, choices=CONTENDERS, metavar="CONTENDER")
    parser.add_argument("--nproc", type=int, default=2, help="ranks")
    parser.add_argument("--cpu", action="store_true", help="two CPU ranks, to try it out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=4, help="steps before the clock starts")
    parser.add_argument("--steps", type=int, default=12, help="steps that are timed")
    parser.add_argument("--tuning", type=int, default=40, help="steps of the run in which `auto` finds its plan")
    parser.add_argument("--seq", type=int, default=2048)
    parser.add_argument("--card-gib", type=float, help="what each rank may allocate, as if its card had no more")
    parser.add_argument("--cache", type=Path, help="where compiled code is kept; else a new folder")
    parser.add_argument("--out", type=Path, help="a file to which the results are appended")
    options = parser.parse_args()
    comparison = Comparison(
        model=options.model,
        finetuning=options.ft,
        lora_rank=options.rank,
        works=tuple(options.work),
        contenders=tuple(options.contenders),
        rounds=options.rounds,
        warmup=options.warmup,
        steps=options.steps,
        tuning=options.tuning,
        sequence=options.seq,
        card_gib=options.card_gib,
    )
    print(tables(compare(comparison, options.nproc, options.cpu, options.cache, options.out)))


if __name__ == "__main__":
    main()
