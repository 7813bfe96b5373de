"""Trains as a step plan says: `planned_steps.py MODEL OUT CASE [CASE ...]`, a JSON line a case.

The trainers are those that Unsloth generates for GPUs, on the CPU, around models of transformers, because Unsloth's
CPU backend knows no padding-free batches. A CASE is `key=value,...`; the keys and their defaults are those of `train`.
"""

import json
from contextlib import ExitStack

import generated_trainers


generated_trainers.load("sft_trainer")

from unsloth_accel import StepPlan, UnslothAcceleratedSFTTrainer, UnslothAcceleratorPlugin  # isort: skip
import counting_tokenizer
import torch
from cases import COMPARABLE, RANK, SGD, WORLD_SIZE, between_ranks, run_cases, steps_logged
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, TrainerCallback
from transformers.modeling_layers import GradientCheckpointingLayer
from trl import SFTConfig

from unsloth_accel.patching import replace_attribute
from unsloth_accel.plan.probe import ProbeFigures
from unsloth_accel.trainers import plan_search


GLOBAL_BATCH, STEPS = 16, 3
NUMBERS = ["neftune_noise_alpha", "label_smoothing_factor"]
BY_LENGTH = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
WORDS = ["rank", "rows", "gradient", "tokens", "step", "weights"]


def conversations():
    """Prompts, of which nothing is learnt, and their completions."""
    return [{"prompt": row["text"][:20], "completion": row["text"][20:] or " rank"} for row in texts()]


def texts():
    """Uneven: the second of two ranks would get most tokens of each step."""
    lengths = [3 + 7 * index % 40 + (60 if index % 4 > 1 else 0) for index in range(GLOBAL_BATCH * STEPS)]
    return [{"text": " ".join(WORDS[(index + n) % 6] for n in range(length))} for index, length in enumerate(lengths)]


class Forwards(TrainerCallback):
    """Counts the forwards of the model in each step, and the calls of the callbacks between micro-batches."""

    def __init__(self, model):
        self.steps, self.substeps, self.kept = [], 0, None
        model.register_forward_pre_hook(self._count)

    def _count(self, *_):
        self.steps[-1] += 1

    def on_step_begin(self, args, state, control, model, **kwargs):
        self.steps.append(0)
        layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
        self.kept = sum(not layer.gradient_checkpointing for layer in layers)

    def on_substep_end(self, args, state, control, **kwargs):
        self.substeps += 1


class RunsOutOfMemory:
    """What a card too small for more than `limit` tokens does.

    In the last layer's forward, in the backward of the first layer, or in the loss, where the fused losses of TRL and
    Unsloth take the head's weight without calling the head. Where it is the layers that are kept which do not fit, any
    number of tokens fits without them.
    """

    def __init__(self, model, phase, limit, kept_layers_only):
        self.limit, self.tokens = limit, 0
        self.layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
        self.kept_layers_only = kept_layers_only
        model.register_forward_pre_hook(self.see, with_kwargs=True)
        if phase == "forward":
            self.layers[-1].register_forward_pre_hook(self.refuse)
        elif phase == "loss":
            head = model.get_output_embeddings()
            taken = property(lambda head: self.refuse() or head._parameters["weight"])
            head.__class__ = type("Head", (type(head),), {"weight": taken})
            model.register_forward_hook(self.forget)
        else:
            first = next(parameter for parameter in model.parameters() if parameter.requires_grad)
            first.register_hook(self.refuse)

    def see(self, model, args, kwargs):
        self.tokens = kwargs["input_ids"].numel()

    def forget(self, *_):
        self.tokens = 0

    def refuse(self, *_):
        fits = self.kept_layers_only and all(layer.gradient_checkpointing for layer in self.layers)
        if self.tokens > self.limit and not fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


class WithPositions:
    """Gives padded batches a tensor more, as those of a vision model have: nothing that this package can cut."""

    def __init__(self, collator):
        self.collator = collator

    def __call__(self, rows):
        batch = self.collator(rows)
        batch["position_ids"] = torch.arange(batch["input_ids"].shape[1]).expand(batch["input_ids"].shape).clone()
        return batch


class Measured:
    """Takes the place of the probe: what a card would have said in which so many tokens fit, all layers kept."""

    def __init__(self, tokens):
        self.tokens = tokens

    def __call__(self, device, margin, gradient_bytes, layer):
        return self

    def finish(self, batches):
        figures = {"batch_tokens": max(batches), "step_tokens": sum(batches)}
        return ProbeFigures(room=self.tokens * 3.0, work=1.0, layer=1.0, **figures)  # 2 layers and the work of a token


def measured(case):
    stack = ExitStack()
    if "fits" in case:  # the first rank has less
        card = Measured(int(case["fits"]) * (1 + RANK))
        for name, value in (("can_measure", lambda device: True), ("MemoryProbe", card)):
            stack.callback(replace_attribute(plan_search, name, value))
    return stack


def plan_of(case):
    if "plan" in case:
        return case["plan"]
    kept = case.get("layers", "0")
    return StepPlan(
        pieces=int(case["pieces"]) if "pieces" in case else None,
        layers_kept=kept if kept == "all" else int(kept),
        balance=case.get("balance", "yes") == "yes",
    )


def train(path, folder, case):
    accumulation = int(case.get("accumulation", "4"))
    torch.manual_seed(0)
    rope = {"rope_parameters": BY_LENGTH, "max_position_embeddings": 16} if "rope" in case else {}
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **rope)
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj", "v_proj"]))
    forwards = Forwards(model)
    if "oom" in case and RANK == WORLD_SIZE - 1:
        RunsOutOfMemory(model, case["oom"], int(case["limit"]), "kept_layers_only" in case)
    arguments = {**COMPARABLE, **SGD, "bf16": False, "max_steps": int(case.get("steps", STEPS))}
    # Where these are counted the ranks gather, and one that fails leaves instead of telling the others why.
    arguments |= {"include_num_input_tokens_seen": "no" if "oom" in case else "all"}
    arguments |= {"max_length": int(case.get("max_length", "512"))}
    arguments |= {"per_device_train_batch_size": GLOBAL_BATCH // WORLD_SIZE // accumulation}
    arguments |= {"gradient_accumulation_steps": accumulation, "gradient_checkpointing": True}
    arguments |= {"padding_free": case.get("padding_free", "yes") == "yes", "packing": case.get("packing") == "yes"}
    arguments |= {name: float(case[name]) for name in NUMBERS if name in case}
    arguments |= {"pad_to_multiple_of": int(case["multiple"]) if "multiple" in case else None}
    arguments |= {"average_tokens_across_devices": case.get("average", "yes") == "yes"}
    trainer = UnslothAcceleratedSFTTrainer(
        model=model,
        args=SFTConfig(str(folder), dataset_num_proc=1, **arguments),
        train_dataset=Dataset.from_list(conversations() if case.get("completion") == "yes" else texts()),
        processing_class=counting_tokenizer.CountingTokenizer.from_pretrained(path),
        callbacks=[forwards],
        plugin=UnslothAcceleratorPlugin(plan=plan_of(case), on_oom=case.get("on_oom")),
    )
    if "positions" in case:
        trainer.data_collator = WithPositions(trainer.data_collator)
    with measured(case):
        trainer.train()
    steps, direct = list(forwards.steps), 0.0
    if WORLD_SIZE == 1:  # on several the gradients of a step of nobody's would not be averaged
        direct = float(trainer.training_step(trainer.model_wrapped, next(iter(trainer.get_train_dataloader()))))
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    weights = torch.cat([p.detach().reshape(-1) for p in model.parameters() if p.requires_grad])
    return {
        "logs": steps_logged(trainer),
        "weights": weights.tolist(),
        "between_ranks": between_ranks(weights) if WORLD_SIZE > 1 else 0.0,
        "forwards": steps,
        "substeps": forwards.substeps,
        "kept": forwards.kept,
        "checkpointed afterwards": sum(layer.gradient_checkpointing for layer in layers),
        "plan": json.loads(trainer.step_plan.to_json()),
        "tokens": [[one.values["tokens"] for one in step] for step in trainer.step_reports],
        "computed": [[one.values["computed_tokens"] for one in step] for step in trainer.step_reports],
        "tokens seen": trainer.state.num_input_tokens_seen,
        "direct": direct,
        "reductions": 0 if trainer._run is None else trainer._run.reductions_begun,
    }


if __name__ == "__main__":
    run_cases(train)
