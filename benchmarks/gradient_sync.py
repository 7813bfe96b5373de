"""Deferred against overlapped gradient synchronisation, and against plain Unsloth, on the same model in one process.

Usage: accelerate launch --num_processes N benchmarks/gradient_sync.py --model PATH --ft lora --rank 16

The modes alternate (A B C A B C), because the speed of a machine drifts; the first third of each run's steps is
dropped. Prints one JSON line per mode, from rank 0.
"""

import argparse
import gc
import json
import os
import random
import statistics
import time


from unsloth_accel import UnslothAcceleratedSFTTrainer, UnslothAcceleratorPlugin  # isort: skip
import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer
from unsloth import FastLanguageModel


LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
WORDS = ["alpha", "beta", "gamma", "the", "a", "of", "tensor", "rank", "gradient", "batch", "loss", "model"]


class StepClock(TrainerCallback):
    """Wall-clock milliseconds of each optimizer step, the GPU's work included."""

    def __init__(self):
        self.times = []

    def on_step_end(self, args, state, control, **kwargs):
        torch.cuda.synchronize()
        self.times.append(time.perf_counter())

    def milliseconds(self):
        kept = self.times[len(self.times) // 3 :]
        return [1000 * (b - a) for a, b in zip(kept, kept[1:], strict=False)]


def build(options):
    model, tokenizer = FastLanguageModel.from_pretrained(
        options.model,
        max_seq_length=options.seq,
        dtype=torch.bfloat16,
        load_in_4bit=options.ft == "qlora",
        full_finetuning=options.ft == "full",
    )
    if options.ft != "full":
        model = FastLanguageModel.get_peft_model(
            model,
            r=options.rank,
            lora_alpha=options.rank,
            lora_dropout=0,
            target_modules=LINEAR,
            use_gradient_checkpointing="unsloth",
            random_state=3407,
        )
    return model, tokenizer


def dataset(options):
    draw = random.Random(1)

    def length():
        if options.lengths == "fixed":
            return options.seq + 8
        return max(8, min(options.seq, int(draw.lognormvariate(5.8, 0.9))))

    count = options.steps * options.rows * options.accumulation * int(os.environ.get("WORLD_SIZE", "1"))
    return Dataset.from_list([{"text": " ".join(draw.choice(WORDS) for _ in range(length()))} for _ in range(count)])


def run(mode, model, tokenizer, rows, options):
    arguments = SFTConfig(
        output_dir="/tmp/out",
        per_device_train_batch_size=options.rows,
        gradient_accumulation_steps=options.accumulation,
        max_steps=options.steps,
        learning_rate=1e-5,
        logging_steps=options.steps,
        report_to="none",
        max_length=options.seq,
        seed=1,
        optim="adamw_torch",
        save_strategy="no",
        disable_tqdm=True,
        bf16=True,
    )
    clock = StepClock()
    common = {"model": model, "processing_class": tokenizer, "args": arguments, "train_dataset": rows}
    if mode == "plain":
        trainer = SFTTrainer(**common, callbacks=[clock])
    else:
        plugin = UnslothAcceleratorPlugin(gradient_sync=mode)
        trainer = UnslothAcceleratedSFTTrainer(**common, callbacks=[clock], plugin=plugin)
    torch.cuda.reset_peak_memory_stats()
    trainer.train()
    if mode != "plain":
        trainer.applied_fixes.undo()  # the next run of plain Unsloth is plain
    peak = torch.cuda.max_memory_allocated() / 2**30
    waits = [
        row.wait_seconds * 1000 for rows_of_step in getattr(trainer, "step_reports", []) for row in rows_of_step[:1]
    ]
    ddp = trainer.model_wrapped
    settings = {k: getattr(ddp, k, None) for k in ("find_unused_parameters", "gradient_as_bucket_view")}
    return clock.milliseconds(), peak, waits, settings


def ratios(steps, reference):
    """Round by round, so that a drift of the machine cancels."""
    return [mine / theirs for mine, theirs in zip(steps, reference, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--ft", default="lora", choices=("lora", "qlora", "full"))
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--modes", nargs="+", default=["plain", "deferred", "overlapped"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=4, help="rows of one micro-batch on each GPU")
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--seq", type=int, default=2048)
    parser.add_argument("--lengths", default="fixed", choices=("fixed", "lognormal"))
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args()
    model, tokenizer = build(options)
    rows = dataset(options)
    forward = model.forward
    steps, peaks, waits, settings = ({mode: [] for mode in options.modes} for _ in range(4))
    for _ in range(options.rounds):
        for mode in options.modes:
            milliseconds, peak, waited, settings[mode] = run(mode, model, tokenizer, rows, options)
            steps[mode].append(statistics.median(milliseconds))
            peaks[mode].append(peak)
            waits[mode] += waited
            model.forward = forward  # Accelerate wraps it in autocast, anew in each run
            gc.collect()
            torch.cuda.empty_cache()
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    if os.environ.get("RANK", "0") == "0":
        for mode in options.modes:
            result = {
                "mode": mode,
                **vars(options),
                "world_size": int(os.environ.get("WORLD_SIZE", "1")),
                "gradient_mib": round(trained / 2**20, 1),
                "step_ms": round(statistics.median(steps[mode]), 1),
                "step_ms_rounds": [round(value, 1) for value in steps[mode]],
                "against_first": round(statistics.median(ratios(steps[mode], steps[options.modes[0]])), 4),
                "peak_gib": round(max(peaks[mode]), 2),
                "wait_ms": round(statistics.median(waits[mode]), 2) if waits[mode] else None,
                **settings[mode],
                "gpu": torch.cuda.get_device_name(),
                "torch": torch.__version__,
            }
            print("RESULT " + json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
