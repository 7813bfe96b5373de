"""What becomes of what a script lets go of: `freed.py MODEL OUT`; each rank writes OUT-<rank>.json."""

import gc
import sys
from collections.abc import Callable
from typing import Any
from weakref import ref


import unsloth  # noqa: F401  # isort: skip  # first, as in every script of Unsloth's documentation
import datasets
import torch
from start import tiny_lora, write_result
from trl import SFTConfig, SFTTrainer

from unsloth_accel import (
    UnslothAcceleratedTrainerMixin,
    UnslothAccelerator,
    disable_multi_gpu,
    enable_multi_gpu,
    get_multi_gpu_status,
)
from unsloth_accel.fixes import apply_fixes


MODEL, OUT = sys.argv[1:]


def trained(trainer_class: Any) -> Any:
    """A trainer after one step; with a global batch of one row."""
    model, tokenizer = tiny_lora(MODEL)
    arguments = SFTConfig(
        f"{OUT}.run",
        max_steps=1,
        per_device_train_batch_size=1,
        max_length=64,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
    )
    rows = datasets.Dataset.from_list([{"text": "rank and batch"}] * 4)
    trainer = trainer_class(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    return trainer


def gone(*references: "ref[Any]") -> list[bool]:
    gc.collect()
    return [reference() is None for reference in references]


def of_plain_trl() -> list[bool]:
    trainer = trained(SFTTrainer)
    references = ref(trainer), ref(trainer.model)
    del trainer
    return gone(*references)


def while_multi_gpu_is_enabled() -> list[bool]:
    with enable_multi_gpu():
        trainer = trained(SFTTrainer)
        assert isinstance(trainer, UnslothAcceleratedTrainerMixin)
        references = ref(trainer), ref(trainer.model)
        del trainer
        return gone(*references)


def after_disable_multi_gpu() -> list[bool]:
    """The script still holds the handle."""
    handle = enable_multi_gpu()
    trainer = trained(SFTTrainer)
    assert isinstance(trainer, UnslothAcceleratedTrainerMixin)
    references = ref(trainer), ref(trainer.model)
    disable_multi_gpu()
    del trainer
    result = gone(*references)
    handle.disable()
    return result


def after_free_memory() -> list[bool]:
    accelerator = UnslothAccelerator()
    model, _ = tiny_lora(MODEL)
    wrapped = accelerator.prepare(model)
    rows = torch.tensor([[3, 4, 5]])
    accelerator.backward(wrapped(input_ids=rows, labels=rows).loss)
    references = ref(wrapped), ref(model)
    del wrapped, model
    accelerator.free_memory()
    return gone(*references)


def with_handles_of_fixes() -> list[bool]:
    model, _ = tiny_lora(MODEL)
    handle, reference = apply_fixes(model), ref(model)
    assert "save_once" in handle.names
    del model
    return gone(reference)


def told_by_the_status() -> dict[str, tuple[str, ...]]:
    """The fixes in place before and while there is a trainer."""
    applied = {"disabled": get_multi_gpu_status().fixes}
    with enable_multi_gpu():
        applied["enabled"] = get_multi_gpu_status().fixes
        trainer = trained(SFTTrainer)
        applied["trained"] = get_multi_gpu_status().fixes
        trainer.applied_fixes.undo()
        applied["undone"] = get_multi_gpu_status().fixes
        del trainer
        gc.collect()
        applied["freed"] = get_multi_gpu_status().fixes
    return applied | {"disabled again": get_multi_gpu_status().fixes}


CASES: dict[str, Callable[[], Any]] = {
    "status": told_by_the_status,
    "plain TRL": of_plain_trl,
    "enabled": while_multi_gpu_is_enabled,
    "disabled": after_disable_multi_gpu,
    "free_memory": after_free_memory,
    "fixes": with_handles_of_fixes,
}

if __name__ == "__main__":
    write_result(OUT, {name: case() for name, case in CASES.items()})
