"""Checks `enable_multi_gpu` on every rank: `multi_gpu.py MODEL OUT`. Rank 0 writes what the test compares into OUT."""

import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import MethodType
from typing import Any


import unsloth  # isort: skip  # first, as in every script of Unsloth's documentation
import datasets
import torch.distributed as dist
import trl
import trl.trainer.sft_trainer
from accelerate import PartialState
from start import RANK, tiny_lora
from transformers.utils.logging import is_progress_bar_enabled
from trl import SFTConfig
from trl import SFTTrainer as Early

from unsloth_accel import (
    ConfigurationError,
    UnslothAcceleratedSFTTrainer,
    UnslothAcceleratedTrainerMixin,
    disable_multi_gpu,
    enable_multi_gpu,
    get_multi_gpu_status,
)
from unsloth_accel.fixes import training_banner, unsloth_telemetry


LIBRARIES = ("unsloth", "unsloth_zoo", "trl", "transformers", "accelerate", "torch")
os.environ.pop(unsloth_telemetry.VARIABLE, None)  # Set by launch.py; offline, Unsloth sends none anyway.


class Derived(Early):
    """A script's own subclass, defined before `enable_multi_gpu`."""

    def __init__(self, *args: Any, note: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.note = note
        self.seen = 0

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        self.seen += 1
        return super().compute_loss(*args, **kwargs)


class Reordered(Early):
    """Takes the same arguments in an order of its own."""

    def __init__(self, rows: datasets.Dataset, args: SFTConfig, model: Any, tokenizer: Any) -> None:
        super().__init__(model, args, None, rows, processing_class=tokenizer)


def attributes(model: Any) -> dict[tuple[str, str], int]:
    """Every function and class that the libraries, the trainers and the model hold, by identity."""
    owners = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in LIBRARIES}
    owners |= {cls.__qualname__: cls for cls in (PartialState, *Early.__mro__[:-1], Derived)} | {"model": model}
    held = [(owner, name, value) for owner, it in owners.items() for name, value in list(vars(it).items())]
    return {(owner, name): id(unbound(value)) for owner, name, value in held if callable(value)}


def unbound(value: Any) -> Any:
    """A method is bound anew when it is put back."""
    return value.__func__ if isinstance(value, MethodType) else value


def state() -> tuple[object, ...]:
    """What else a fix touches."""
    filters = [list(logging.getLogger(name).filters) for name in training_banner.LOGGERS]
    return filters, dist.get_debug_level(), os.environ.get(unsloth_telemetry.VARIABLE), is_progress_bar_enabled()


def assert_restored(model: Any, before: tuple[dict[tuple[str, str], int], tuple[object, ...]]) -> None:
    """What a library has loaded meanwhile is not ours to take back."""
    now = attributes(model)
    changed = {key for key, value in before[0].items() if now.get(key) != value}
    added = {key for key in now.keys() - before[0].keys() if key[1] == "print"}
    assert not changed | added, changed | added
    assert state() == before[1]


def arguments(folder: Path) -> SFTConfig:
    return SFTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=1,
        max_steps=2,
        logging_steps=1,
        report_to="none",
        max_length=64,
        save_strategy="no",
        disable_tqdm=True,
        bf16=False,
        optim="adamw_torch",
    )


def refused(function: Callable[..., object], *args: object, **kwargs: object) -> str:
    try:
        function(*args, **kwargs)
    except (ConfigurationError, TypeError) as error:
        return str(error)
    raise AssertionError(f"{function} accepted {args} {kwargs}")


def main() -> None:
    path, out = sys.argv[1], Path(sys.argv[2])
    # TRL and transformers fill their lazy modules when a name is first used; that is not ours to restore.
    _ = trl.SFTTrainer, UnslothAcceleratedSFTTrainer
    assert (vars(unsloth).get("print") is None) == (RANK == 0), "the class mends the loading"
    disable_multi_gpu()
    model, tokenizer = tiny_lora(path, use_gradient_checkpointing="unsloth")
    rows = datasets.Dataset.from_list([{"text": "rank and batch " * (1 + index % 5)} for index in range(16)])
    common = {"model": model, "processing_class": tokenizer, "train_dataset": rows}
    script_arguments = arguments(out.parent / "run")
    before = attributes(model), state()

    with enable_multi_gpu(
        num_gpus=2,
        batch_size_per_gpu=2,
        ddp_backend="gloo",
        enable_memory_optimization=True,
        enable_gradient_checkpointing=False,
        find_unused_parameters=False,
        debug=True,
    ):
        assert dist.get_debug_level() == dist.DebugLevel.DETAIL
        assert logging.getLogger("unsloth_accel").level == logging.DEBUG
        for trainer_class in (Early, trl.SFTTrainer, trl.trainer.sft_trainer.SFTTrainer):
            trainer = trainer_class(args=script_arguments, **common)
            assert type(trainer) is UnslothAcceleratedSFTTrainer
        positional = Early(model, script_arguments, train_dataset=rows, processing_class=tokenizer)
        assert positional.args.per_device_train_batch_size == 2
        reordered = Reordered(rows, script_arguments, model, tokenizer)
        assert (reordered.args.per_device_train_batch_size, reordered.model) == (2, model)
        assert "multiple values" in refused(Early, model, script_arguments, args=script_arguments)
        assert trainer.args.per_device_train_batch_size == 2
        assert (trainer.plugin.plan, trainer.step_plan.plan.pieces) == ("auto", None), "it has not trained"
        assert script_arguments.per_device_train_batch_size == 1, "the script's own object was changed"
        assert trainer.plugin.find_unused_parameters is False
        assert not trainer.args.gradient_checkpointing
        assert not model.is_gradient_checkpointing
        derived = Derived(args=script_arguments, note="mine", **common)
        assert isinstance(derived, (Derived, UnslothAcceleratedTrainerMixin))
        derived.train()
        assert (derived.note, derived.seen, len(derived.step_reports)) == ("mine", 2, 2)
        assert not model.is_gradient_checkpointing
        status = get_multi_gpu_status()
        touched = {key for key, value in attributes(model).items() if before[0].get(key) != value}
        expected = {("torch", "load"), ("PartialState", "main_process_first"), (Early.__qualname__, "__init__")}
        expected |= {("model", "save_pretrained_merged")}
        assert touched >= expected, touched
        assert state() != before[1]

    assert_restored(model, before)
    assert not isinstance(Early(args=script_arguments, **common), UnslothAcceleratedTrainerMixin)
    assert not isinstance(Derived(args=script_arguments, note="", **common), UnslothAcceleratedTrainerMixin)

    with enable_multi_gpu(enable_memory_optimization=False):
        assert Early(args=script_arguments, **common).plugin.plan == "keep"
    assert_restored(model, before)

    errors = [refused(enable_multi_gpu, num_gpus=3)]
    assert_restored(model, before)
    enable_multi_gpu(ddp_backend="nccl")
    enable_multi_gpu(ddp_backend="nccl", batch_size_per_gpu=2)
    errors += [refused(Early, args=script_arguments, **common), refused(Early, **common)]
    disable_multi_gpu()
    disable_multi_gpu()
    assert_restored(model, before)

    if RANK == 0:
        out.write_text(json.dumps({"status": status.to_json(), "printed": str(status), "errors": errors}))


if __name__ == "__main__":
    main()
