"""What this package's trainer costs against plain Unsloth on the same work, in one process, mode after mode.

Usage: accelerate launch --multi_gpu --num_processes N benchmarks/gradient_sync.py --model PATH --work 4x1:fixed

A work is `ROWSxACCUMULATION:LENGTHS`. The modes alternate (A B A B), because the speed of a machine drifts, and each
run begins with the same weights. The device is waited for twice in a run, after the first third of the steps and at
the end, and not in between: a clock that waits in each step hides the waits of what it measures. Modes:

    plain       trl.SFTTrainer as Unsloth patches it
    varlen      the same with one attention launch per layer, which torch >= 2.12, flash-attn or xformers bring
    deferred    ours, gradients averaged after backward
    overlapped  ours, gradients averaged by DDP's reducer
    balanced    ours, the rows of a step dealt to the ranks by cost
    pieces      the same, a rank's micro-batches put together
    planned     the same, no layer recomputed
    auto        ours, `plan="auto"`

Prints one JSON line per work and mode after each round, from rank 0; the last one holds all rounds.
"""

import argparse
import gc
import json
import os
import random
import statistics
import time


from unsloth_accel import StepPlan, UnslothAcceleratedSFTTrainer, UnslothAcceleratorPlugin  # isort: skip
import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from unsloth_accel.bench.comparison import Comparison
from unsloth_accel.bench.models import load
from unsloth_accel.bench.random_llama import WORDS
from unsloth_accel.fixes import packed_attention


PLANS = {
    "balanced": StepPlan(),
    "pieces": StepPlan(pieces=1),
    "planned": StepPlan(pieces=1, layers_kept="all"),
    "auto": "auto",
}
WORLD_SIZE, RANK = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))


class RunClock(TrainerCallback):
    """Wall-clock milliseconds of a step, the device's work included, as the mean over the last two thirds of a run."""

    def __init__(self, steps):
        self.first, self.steps = steps // 3, steps

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.first:
            torch.cuda.synchronize()
            self.began = time.perf_counter()

    def on_train_end(self, args, state, control, **kwargs):
        torch.cuda.synchronize()
        self.milliseconds = 1000 * (time.perf_counter() - self.began) / (self.steps - self.first)


def dataset(options, rows, lengths):
    draw = random.Random(1)

    def length():
        if lengths == "fixed":
            return options.seq + 8
        return max(8, min(options.seq, int(draw.lognormvariate(5.8, 0.9))))

    count = options.steps * rows * WORLD_SIZE
    return Dataset.from_list([{"text": " ".join(draw.choice(WORDS) for _ in range(length()))} for _ in range(count)])


def run(mode, model, tokenizer, data, options, rows, accumulation):
    arguments = SFTConfig(
        output_dir="/tmp/out",
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=accumulation,
        max_steps=options.steps,
        learning_rate=1e-4,
        logging_steps=options.steps,
        report_to="none",
        max_length=options.seq,
        seed=1,
        optim="adamw_torch",
        save_strategy="no",
        disable_tqdm=True,
        bf16=True,
    )
    clock = RunClock(options.steps)
    common = {"model": model, "processing_class": tokenizer, "args": arguments, "train_dataset": data}
    if mode in ("plain", "varlen"):
        undo = packed_attention.apply(None) if mode == "varlen" and packed_attention.probe(None).needed else None
        trainer = SFTTrainer(**common, callbacks=[clock])
    else:
        how = {"plan": PLANS[mode]} if mode in PLANS else {"gradient_sync": mode}
        plugin = UnslothAcceleratorPlugin(**how)
        trainer = UnslothAcceleratedSFTTrainer(**common, callbacks=[clock], plugin=plugin)
        undo = trainer.applied_fixes.undo
    torch.cuda.reset_peak_memory_stats()
    loss = trainer.train().training_loss
    if undo is not None:
        undo()
    waits = [ranks[0].wait_seconds * 1000 for ranks in getattr(trainer, "step_reports", [])]
    peak = torch.cuda.max_memory_allocated() / 2**30
    return {"ms": clock.milliseconds, "peak_gib": peak, "loss": loss, "wait_ms": waits}


def summary(runs, reference):
    """`runs`, `reference`: one entry a round."""
    ratios = [mine["ms"] / theirs["ms"] for mine, theirs in zip(runs, reference, strict=False)]
    waits = [wait for one in runs for wait in one["wait_ms"]]
    return {
        "step_ms": round(statistics.median(one["ms"] for one in runs), 1),
        "step_ms_rounds": [round(one["ms"], 1) for one in runs],
        "against": round(statistics.median(ratios), 4),
        "against_rounds": [round(ratio, 4) for ratio in ratios],
        "loss": [round(one["loss"], 4) for one in runs],
        "peak_gib": round(max(one["peak_gib"] for one in runs), 2),
        "wait_ms": round(statistics.median(waits), 2) if waits else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--ft", default="lora", choices=("lora", "qlora", "full"))
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--modes", nargs="+", default=["varlen", "deferred"])
    parser.add_argument("--work", nargs="+", default=["4x1:fixed"], metavar="ROWSxACCUMULATION:LENGTHS")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seq", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=9)
    options = parser.parse_args()
    settings = Comparison(
        model=options.model,
        finetuning=options.ft,
        lora_rank=options.rank,
        works=(),
        contenders=(),
        sequence=options.seq,
    )
    model, tokenizer = load("unsloth", settings)
    forward = model.forward
    trained = [p for p in model.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in trained]
    machine = {"world_size": WORLD_SIZE, "gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
    machine["model"] = os.path.basename(options.model)
    machine["compiled"] = os.environ.get("UNSLOTH_COMPILE_DISABLE", "0") != "1"
    machine["gradient_mib"] = round(sum(p.numel() * p.element_size() for p in trained) / 2**20, 1)
    for work in options.work:
        shape, lengths = work.split(":")
        rows, accumulation = map(int, shape.split("x"))
        data = dataset(options, rows * accumulation, lengths)
        runs = {mode: [] for mode in options.modes}
        for round_number in range(options.rounds + 1):
            for mode in options.modes:
                with torch.no_grad():
                    for parameter, value in zip(trained, start, strict=True):
                        parameter.copy_(value)
                found = run(mode, model, tokenizer, data, options, rows, accumulation)
                if round_number:  # the first compiles kernels
                    runs[mode].append(found)
                model.forward = forward  # Accelerate wraps it in autocast, anew in each run
                gc.collect()
            for mode in options.modes if round_number and RANK == 0 else ():
                told = {"work": work, "mode": mode, **summary(runs[mode], runs[options.modes[0]])}
                told |= {"ft": options.ft, "rank": options.rank, "steps": options.steps, "seq": options.seq, **machine}
                print("RESULT " + json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
