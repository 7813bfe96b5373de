"""Trains a tiny model a few steps per case with real Unsloth, and writes one JSON line per case from rank 0.

Usage: trajectory.py MODEL OUT CASE [CASE ...], on one rank with python or on several with `accelerate launch`.

A CASE is `key=value,...`; the keys and their defaults are the fields of `Case`. On a GPU Unsloth's own kernels and
generated trainer run, on the CPU its CPU backend.
"""

import random
import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path


from unsloth_accel import UnslothAcceleratedSFTTrainer, UnslothAcceleratorPlugin  # isort: skip
import torch
from cases import COMPARABLE, ON_GPU, SGD, WORLD_SIZE, between_ranks, report, steps_logged
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer
from unsloth import FastLanguageModel

from unsloth_accel.metrics.window import METRICS


LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CHECKPOINTING = {"unsloth": "unsloth", "true": True, "false": False}
DTYPES = {"qlora": torch.bfloat16, "qlora_embed_head": torch.bfloat16, "fp16": torch.float16}
STEPS = 5
MAX_LENGTH = 512  # below, Unsloth turns its own checkpointing into plain `True`


@dataclass
class Case:
    kind: str = "lora"  # or embed_head, modules_to_save, dora, two_adapters, qlora, qlora_embed_head, full, fp16
    checkpointing: str = "false"
    accumulation: str = "1"
    batch: str = "8"  # rows of a step, of all ranks together
    sync: str = "auto"
    hook: str = "no"
    device_map: str = ""  # what an old script may name
    trainer: str = "accelerated"  # or plain: trl.SFTTrainer as Unsloth patches it
    optim: str = "adamw"  # or sgd
    count: str = "no"  # yes: count the collectives of each step
    plan: str = ""  # of the plugin; empty: its default


class CollectiveCount(TrainerCallback):
    """What the ranks exchange in each step, from its first micro-batch on, as torch's profiler records it."""

    def __init__(self):
        self.steps = []

    def on_step_begin(self, args, state, control, **kwargs):
        self.profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
        self.profile.__enter__()

    def on_step_end(self, args, state, control, **kwargs):
        self.profile.__exit__(None, None, None)
        events = self.profile.key_averages()
        self.steps.append({e.key: e.count for e in events if e.key.startswith("c10d::")})


def rows():
    draw = random.Random(0)
    words = ["rank", "rows", "gradient", "tokens", "step", "weights"]
    return Dataset.from_list(
        [{"text": " ".join(draw.choice(words) for _ in range(draw.randint(4, 90)))} for _ in range(64)]
    )


def add_adapter(model, kind, checkpointing):
    options = {"r": 8, "lora_alpha": 8, "lora_dropout": 0, "random_state": 3407, "target_modules": list(LINEAR)}
    if kind in ("embed_head", "qlora_embed_head"):
        options["target_modules"] += ["embed_tokens", "lm_head"]
    if kind == "modules_to_save":
        options["modules_to_save"] = ["embed_tokens", "lm_head"]
    if kind == "dora":
        options["use_dora"] = True
    model = FastLanguageModel.get_peft_model(model, use_gradient_checkpointing=checkpointing, **options)
    if kind == "fp16":  # a scaler needs parameters in float32
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    if kind == "two_adapters":
        model.add_adapter("second", LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
        model.base_model.set_adapter(["default", "second"])
    return model


def build(path, case):
    checkpointing = CHECKPOINTING[case.checkpointing]
    model, tokenizer = FastLanguageModel.from_pretrained(
        path,
        max_seq_length=MAX_LENGTH,
        dtype=DTYPES.get(case.kind, torch.float32),
        load_in_4bit=case.kind.startswith("qlora"),
        full_finetuning=case.kind == "full",
        use_gradient_checkpointing=checkpointing,
        **({"device_map": case.device_map} if case.device_map else {}),
    )
    if case.kind != "full":
        model = add_adapter(model, case.kind, checkpointing)
        assert hasattr(model, "peft_config"), "a case before this one was of full finetuning"
    return model, tokenizer


def training_arguments(case, folder):
    accumulation = int(case.accumulation)
    return SFTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=int(case.batch) // WORLD_SIZE // accumulation,
        gradient_accumulation_steps=accumulation,
        max_steps=STEPS,
        max_length=MAX_LENGTH,
        gradient_checkpointing=case.checkpointing != "false",
        fp16=case.kind == "fp16",
        bf16=case.kind.startswith("qlora"),
        **COMPARABLE | (SGD if case.optim == "sgd" else {}),
    )


def make_trainer(case, model, tokenizer, folder, callbacks):
    common = {"model": model, "processing_class": tokenizer, "args": training_arguments(case, folder)}
    common |= {"train_dataset": rows(), "callbacks": callbacks}
    if case.trainer == "plain":
        return SFTTrainer(**common)
    plugin = UnslothAcceleratorPlugin(gradient_sync=case.sync, comm_hook=case.hook, plan=case.plan or None)
    return UnslothAcceleratedSFTTrainer(**common, plugin=plugin)


def train(path, case, out):
    model, tokenizer = build(path, case)
    counter = CollectiveCount()
    callbacks = [counter] if case.count == "yes" else []
    trainer = make_trainer(case, model, tokenizer, out.with_suffix(".run"), callbacks)
    forwards = []
    model.register_forward_pre_hook(lambda *_: forwards.append(1))
    trainer.train()
    weights = torch.cat([p.detach().float().reshape(-1) for p in model.parameters() if p.requires_grad]).cpu()
    return {
        "logs": steps_logged(trainer),
        "weights": weights.tolist() if not ON_GPU else [],
        "between_ranks": between_ranks(weights),
        "metrics": [{k: entry[k] for k in METRICS if k in entry} for entry in trainer.state.log_history],
        "collectives": counter.steps,
        "forwards": len(forwards),
        "step_reports": [[one._asdict() for one in step] for step in getattr(trainer, "step_reports", [])],
    }


def main() -> None:
    path, out, *cases = sys.argv[1:]
    for text in cases:
        case = Case(**dict(pair.split("=") for pair in text.split(",") if pair))
        result = {"case": text, "world_size": WORLD_SIZE, **asdict(case)}
        report(Path(out), result, partial(train, path, case, Path(out)))


if __name__ == "__main__":
    main()
