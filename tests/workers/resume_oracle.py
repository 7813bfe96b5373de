"""Trains, stops and resumes: `resume_oracle.py MODEL OUT CASE [CASE ...]`, a JSON line for each case from rank 0.

A CASE is `key=value,...`; the keys and their defaults are the fields of `Case`. What each rank holds at the steps of
`look`, before their update, is in OUT.<name>-<step>-<rank>.pt, and the checkpoints are in OUT.<folder>.
"""

import hashlib
import random
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path


from unsloth_accel import StepPlan, UnslothAcceleratedSFTTrainer, UnslothAcceleratorPlugin  # isort: skip
import numpy as np
import torch
from cases import COMPARABLE, ON_GPU, RANK, WORLD_SIZE, between_ranks, report, steps_logged
from datasets import Dataset
from transformers import TrainerCallback
from trl import SFTConfig
from unsloth import FastLanguageModel


GLOBAL_BATCH, ROWS, STEPS = 8, 24, 9  # three epochs


@dataclass
class Case:
    name: str
    folder: str
    kind: str = "lora"  # or full
    dropout: str = "0"
    resume: str = "auto"  # or the number of the step, or no
    stop: str = ""  # the step after which all ranks save and stop
    save: str = ""  # steps that are saved
    look: str = ""  # steps that are looked at
    plan: str = "keep"  # or balance


class SavesAndStops(TrainerCallback):
    def __init__(self, save, stop):
        self.save, self.stop = save, stop

    def on_step_end(self, args, state, control, **kwargs):
        control.should_save = state.global_step in (*self.save, *self.stop)
        control.should_training_stop |= state.global_step in self.stop


class Looks(TrainerCallback):
    """Keeps what a rank holds when a step's gradients are ready and its update is to come."""

    def __init__(self, out, steps):
        self.out, self.steps, self.trainer, self.batches = out, steps, None, []

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        step = state.global_step + 1
        if step not in self.steps:
            return
        trained = {name: p.detach().cpu() for name, p in self.trainer.model.named_parameters() if p.requires_grad}
        held = {
            "batches": [digest(batch["input_ids"].tolist()) for batch in self.batches],
            "rows": [digest(row) for batch in self.batches for row in rows_of(batch)],
            "weights": trained,
            "optimizer": self.trainer.optimizer.state_dict(),
            "scheduler": self.trainer.lr_scheduler.state_dict(),
            "random": random_numbers(),
        }
        torch.save(held, f"{self.out}-{step}-{RANK}.pt")


class Trainer(UnslothAcceleratedSFTTrainer):
    looks = None

    def get_batch_samples(self, *args, **kwargs):
        batches, count = super().get_batch_samples(*args, **kwargs)
        self.looks.batches = batches
        return batches, count


def digest(tokens):
    return hashlib.sha256(repr(tokens).encode()).hexdigest()


def rows_of(batch):
    """The tokens of each row, without padding."""
    if "attention_mask" in batch:
        return [
            ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
        ]
    (starts,) = (batch["position_ids"][0] == 0).nonzero(as_tuple=True)
    return [row.tolist() for row in batch["input_ids"][0].tensor_split(starts[1:].cpu())]


def random_numbers():
    kind, keys, *rest = np.random.get_state()
    states = {"python": random.getstate(), "numpy": (kind, keys.tolist(), *rest), "torch": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state()} if ON_GPU else {})


def texts():
    draw = random.Random(0)
    words = ["rank", "rows", "gradient", "tokens", "step", "weights"]
    return Dataset.from_list([{"text": " ".join(draw.choices(words, k=draw.randint(4, 50)))} for _ in range(ROWS)])


def build(path, case):
    options = {"max_seq_length": 64, "dtype": torch.float32, "load_in_4bit": False}
    model, tokenizer = FastLanguageModel.from_pretrained(path, full_finetuning=case.kind == "full", **options)
    if case.kind == "lora":
        model = FastLanguageModel.get_peft_model(
            model,
            r=4,
            lora_alpha=4,
            lora_dropout=float(case.dropout),
            target_modules=["q_proj", "v_proj"],
            random_state=3407,
            use_gradient_checkpointing=False,
        )
        assert hasattr(model, "peft_config"), "a case before this one was of full finetuning"
    return model, tokenizer


def numbers(text):
    return [int(number) for number in text.split("+") if number]


def train(path, out, case):
    model, tokenizer = build(path, case)
    looks = Looks(f"{out}.{case.name}", numbers(case.look))
    # An epsilon that is not small keeps AdamW from making a step of a rounding, where a gradient is near zero.
    arguments = {**COMPARABLE, "learning_rate": 0.1, "adam_epsilon": 1.0, "lr_scheduler_type": "linear"}
    arguments |= {"warmup_steps": 2, "max_steps": STEPS, "max_length": 64, "bf16": False, "dataset_num_proc": 1}
    # What a user's script says once, whatever the ranks.
    accumulation = 2 if case.resume == "auto" else GLOBAL_BATCH // 2 // WORLD_SIZE
    trainer = Trainer(
        model=model,
        args=SFTConfig(
            f"{out}.{case.folder}",
            per_device_train_batch_size=2,
            gradient_accumulation_steps=accumulation,
            gradient_checkpointing=False,
            **arguments,
        ),
        train_dataset=texts(),
        processing_class=tokenizer,
        callbacks=[SavesAndStops(numbers(case.save), numbers(case.stop)), looks],
        plugin=UnslothAcceleratorPlugin(resume="auto", plan=StepPlan() if case.plan == "balance" else "keep"),
    )
    trainer.looks, looks.trainer = looks, trainer
    given = {"auto": None, "no": False}
    trainer.train(given.get(case.resume, f"{out}.{case.folder}/checkpoint-{case.resume}"))
    weights = torch.cat([p.detach().float().reshape(-1) for p in model.parameters() if p.requires_grad]).cpu()
    return {
        "logs": steps_logged(trainer),
        "weights": weights.tolist(),
        "between_ranks": between_ranks(weights) if WORLD_SIZE > 1 else 0.0,
        "accumulation": trainer.args.gradient_accumulation_steps,
    }


def main() -> None:
    path, out, *cases = sys.argv[1:]
    for text in cases:
        case = Case(**dict(pair.split("=") for pair in text.split(",")))
        report(Path(out), {"case": case.name, "world_size": WORLD_SIZE}, partial(train, path, out, case))


if __name__ == "__main__":
    main()
