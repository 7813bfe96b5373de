"""What users do with a trainer that went wrong before: `users_code.py MODEL OUT CASE [CASE ...]`, a JSON line a case.

On one rank the trainers are TRL's own, on several the accelerated ones. Real Unsloth; the models
are loaded with transformers, so that the loss is TRL's, which logs metrics of it.
"""

import sys
from functools import partial
from pathlib import Path


import unsloth  # isort: skip
import torch
from cases import COMPARABLE, RANK, SGD, WORLD_SIZE, between_ranks, report, steps_logged
from datasets import Dataset, IterableDataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

from unsloth_accel import accelerated


GLOBAL_BATCH, STEPS = 8, 4


assert unsloth  # imported first, as every script does


def texts(count=32):
    return [{"text": f"Row {number} of the data. " * (1 + number * 7 % 5)} for number in range(count)]


def load(path, full=False):
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    if full:
        return model
    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj", "v_proj"]))


def make(path, trainer_class=SFTTrainer, *, model=None, rows=None, callbacks=(), **arguments):
    accumulation = arguments.get("gradient_accumulation_steps", 1)
    settings = {**COMPARABLE, **SGD, "bf16": False, "gradient_checkpointing": False, "max_steps": STEPS}
    settings |= {"per_device_train_batch_size": GLOBAL_BATCH // WORLD_SIZE // accumulation, **arguments}
    chosen = trainer_class if WORLD_SIZE == 1 else accelerated(trainer_class)
    return chosen(
        model=model or load(path),
        processing_class=AutoTokenizer.from_pretrained(path),
        args=SFTConfig(str(Path(sys.argv[2]).with_suffix(".run")), **settings),
        train_dataset=rows or Dataset.from_list(texts()),
        eval_dataset=Dataset.from_list(texts(8)),
        callbacks=list(callbacks),
    )


def trained(trainer):
    """Trains, and tells what was logged and how far the ranks are apart."""
    trainer.train()
    weights = torch.cat([p.detach().reshape(-1) for p in trainer.model.parameters() if p.requires_grad])
    return {
        "logs": steps_logged(trainer),
        "weights": weights.tolist(),
        "between_ranks": between_ranks(weights) if WORLD_SIZE > 1 else 0.0,
        "reports": len(getattr(trainer, "step_reports", [])),
    }


def train(path):
    return trained(make(path))


def evaluates_first(path):
    trainer = make(path)
    trainer.evaluate()
    return trained(trainer)


def predicts_first(path):
    trainer = make(path)
    trainer.predict(trainer.eval_dataset)
    return trained(trainer)


def another_evaluates(path):
    model = load(path)
    make(path, model=model).evaluate()
    return trained(make(path, model=model))


def trains_twice(path):
    """The second run begins with the weights, and the wrapped model, of the first."""
    trainer = make(path)
    trainer.train()
    trainer.evaluate()
    return trained(trainer)


class Freezes(TrainerCallback):
    """Trains the head alone at first."""

    def on_train_begin(self, args, state, control, model, **kwargs):
        model.model.requires_grad_(False)

    def on_step_begin(self, args, state, control, model, **kwargs):
        if state.global_step == 2:
            model.model.requires_grad_(True)


def unfreezes(path):
    return trained(make(path, model=load(path, full=True), callbacks=[Freezes()]))


class OwnStep(SFTTrainer):
    """A `training_step` that does not call that of its base."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        model.train()
        loss = self.compute_loss(model, self._prepare_inputs(inputs), num_items_in_batch=num_items_in_batch)
        self.accelerator.backward(loss)
        return loss.detach()


class OwnBackward(SFTTrainer):
    def training_step(self, model, inputs, num_items_in_batch=None):
        model.train()
        loss = self.compute_loss(model, self._prepare_inputs(inputs), num_items_in_batch=num_items_in_batch)
        loss.backward()
        return loss.detach()


class RDrop(SFTTrainer):
    """Two forwards, and the loss of both."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        first = super().compute_loss(model, dict(inputs), num_items_in_batch=num_items_in_batch)
        second = super().compute_loss(model, dict(inputs), num_items_in_batch=num_items_in_batch)
        return (first + second) / 2


class FGM(SFTTrainer):
    """A second backward on weights that were moved against the first."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = super().training_step(model, dict(inputs), num_items_in_batch)
        head = self.model.get_input_embeddings().weight
        head.data.add_(0.01)
        super().training_step(model, dict(inputs), num_items_in_batch)
        head.data.sub_(0.01)
        return loss


class Gathers(SFTTrainer):
    """Counts the rows that `gather_for_metrics` gives it in a step."""

    rows_seen = 0

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self.rows_seen += len(self.accelerator.gather_for_metrics(inputs["input_ids"][:, 0]))
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


def with_class(trainer_class, path, **arguments):
    trainer = make(path, trainer_class, **arguments)
    return {**trained(trainer), "rows": getattr(trainer, "rows_seen", None)}


def streams(path):
    """30 rows: the last step of the epoch has fewer micro-batches than the others."""
    rows = IterableDataset.from_generator(partial(iter, texts(30)))
    return trained(make(path, rows=rows, gradient_accumulation_steps=2, max_steps=3))


class StopsOnce(TrainerCallback):
    stopped = False

    def on_substep_end(self, args, state, control, **kwargs):
        if state.global_step == 1 and not self.stopped:
            self.stopped = True
            control.should_training_stop = True


def stops_in_a_step(path):
    """In the middle of the second step, then trains again from the weights it has."""
    trainer = make(path, callbacks=[StopsOnce()], gradient_accumulation_steps=2)
    trainer.train()
    return trained(trainer)


class PartsInTheLastStep(TrainerCallback):
    def on_step_end(self, args, state, control, model, **kwargs):
        if state.global_step == STEPS and RANK == 1:
            next(p for p in model.parameters() if p.requires_grad).data.add_(0.01)


def parts_in_the_last_step(path):
    return trained(make(path, callbacks=[PartsInTheLastStep()]))


def compiles(path):
    return trained(make(path, torch_compile=True, torch_compile_backend="eager"))


class LogsInAStep(TrainerCallback):
    trainer = None

    def on_substep_end(self, args, state, control, **kwargs):
        self.trainer.log({"between": 1.0})


def logs_in_a_step(path):
    """TRL forgets what it had noted of the first micro-batch."""
    callback = LogsInAStep()
    callback.trainer = make(path, callbacks=[callback], gradient_accumulation_steps=2)
    return trained(callback.trainer)


def counts_tokens(path):
    """transformers gathers after each micro-batch."""
    return trained(make(path, include_num_input_tokens_seen="all", gradient_accumulation_steps=2))


CASES = {
    "train": train,
    "evaluates_first": evaluates_first,
    "predicts_first": predicts_first,
    "another_evaluates": another_evaluates,
    "trains_twice": trains_twice,
    "unfreezes": unfreezes,
    "own_step": partial(with_class, OwnStep),
    "own_backward": partial(with_class, OwnBackward),
    "r_drop": partial(with_class, RDrop, gradient_accumulation_steps=2),
    "fgm": partial(with_class, FGM, gradient_accumulation_steps=2),
    "gathers": partial(with_class, Gathers, gradient_accumulation_steps=2),
    "streams": streams,
    "stops_in_a_step": stops_in_a_step,
    "compiles": compiles,
    "logs_in_a_step": logs_in_a_step,
    "parts_in_the_last_step": parts_in_the_last_step,
    "counts_tokens": counts_tokens,
}


def main() -> None:
    path, out, *cases = sys.argv[1:]
    for case in cases:
        report(Path(out), {"case": case, "world_size": WORLD_SIZE}, partial(CASES[case], path))


if __name__ == "__main__":
    main()
