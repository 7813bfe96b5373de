"""Trains with a step plan on GPUs, the last of which may be held to less memory: `plan_on_gpus.py MODEL OUT CASE ...`.

A CASE is `key=value;...`: `plan` is keep, auto or JSON of a StepPlan; `gib` what the last rank's process may allocate.
Writes a JSON line a case from rank 0. The rows of a step are Unsloth's default: 2 rows x 4 micro-batches a rank.
"""

import json
import random
import sys
from functools import partial
from pathlib import Path


from unsloth_accel import StepPlan, UnslothAcceleratedSFTTrainer, UnslothAcceleratorPlugin  # isort: skip
import torch
from cases import COMPARABLE, RANK, WORLD_SIZE, between_ranks, report, steps_logged
from datasets import Dataset
from transformers import TrainerCallback
from trl import SFTConfig
from unsloth import FastLanguageModel


LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
WORDS = ["alpha", "beta", "gamma", "the", "a", "of", "tensor", "rank", "gradient", "batch", "loss", "model"]
MAX_LENGTH = 2048


class Forwards(TrainerCallback):
    """Counts the forwards of the model in each step."""

    def __init__(self, model):
        self.steps = []
        self.handle = model.register_forward_pre_hook(self._count)

    def _count(self, *_):
        self.steps[-1] += 1

    def on_step_begin(self, args, state, control, **kwargs):
        self.steps.append(0)


def rows(steps):
    draw = random.Random(1)
    lengths = [max(8, min(MAX_LENGTH, int(draw.lognormvariate(5.8, 0.9)))) for _ in range(8 * WORLD_SIZE * steps)]
    return Dataset.from_list([{"text": " ".join(draw.choice(WORDS) for _ in range(length))} for length in lengths])


def plan_of(text):
    return text if text in ("keep", "auto") else StepPlan.from_json(text)


def build(path):
    model, tokenizer = FastLanguageModel.from_pretrained(
        path, max_seq_length=MAX_LENGTH, dtype=torch.bfloat16, load_in_4bit=False
    )
    model = FastLanguageModel.get_peft_model(
        model,
        r=16,
        lora_alpha=16,
        target_modules=LINEAR,
        use_gradient_checkpointing="unsloth",
        random_state=3407,
    )
    return model, tokenizer


def train(model, tokenizer, folder, case):
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    total = torch.cuda.mem_get_info()[1] / 2**30
    share = float(case["gib"]) / total if "gib" in case and RANK == WORLD_SIZE - 1 else 1.0
    torch.cuda.set_per_process_memory_fraction(min(share, 1.0))
    forwards = Forwards(model)
    steps = int(case.get("steps", "5"))
    arguments = {**COMPARABLE, "max_steps": steps, "bf16": True, "max_length": MAX_LENGTH}
    arguments |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    trainer = UnslothAcceleratedSFTTrainer(
        model=model,
        args=SFTConfig(str(folder), dataset_num_proc=1, **arguments),
        train_dataset=rows(5),
        processing_class=tokenizer,
        callbacks=[forwards],
        plugin=UnslothAcceleratorPlugin(plan=plan_of(case["plan"]), memory_margin=0.05),
    )
    trainer.train()
    forwards.handle.remove()
    weights = torch.cat([p.detach().float().cpu().reshape(-1) for p in model.parameters() if p.requires_grad])
    return {
        "logs": steps_logged(trainer),
        "between_ranks": between_ranks(weights),
        "forwards": forwards.steps,
        "plan": json.loads(trainer.step_plan.to_json()),
        "cuts": [[one.values.get("pieces_cut", 0) for one in step] for step in trainer.step_reports],
        "peaks": [round(one.peak_memory_gib, 2) for one in trainer.step_reports[-1]],
        "runtime": [round(entry.get("train_runtime", 0), 1) for entry in trainer.state.log_history[-1:]],
    }


def main() -> None:
    path, out, *cases = sys.argv[1:]
    model, tokenizer = build(path)
    trained = [p for p in model.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in trained]
    forward = model.forward
    for text in cases:
        case = dict(pair.split("=", 1) for pair in text.split(";"))
        with torch.no_grad():
            for parameter, value in zip(trained, start, strict=True):
                parameter.copy_(value)
        run = partial(train, model, tokenizer, Path(out).with_suffix(".run"), case)
        report(Path(out), {"case": text, "world_size": WORLD_SIZE}, run)
        model.forward = forward  # Accelerate wraps it in autocast, anew in each run


if __name__ == "__main__":
    main()
