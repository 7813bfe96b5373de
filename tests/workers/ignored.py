"""What DDP takes of real Unsloth models: `ignored.py MODEL OUT`; each rank writes OUT-<rank>.json."""

import gc
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any


from unsloth_accel import UnslothAcceleratedSFTTrainer, UnslothAccelerator, UnslothAcceleratorPlugin  # isort: skip
import torch
from accelerate import PartialState
from datasets import Dataset
from start import RANK, write_result
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoTokenizer
from trl import SFTConfig
from unsloth import FastLanguageModel

from unsloth_accel.ddp.ignored import MARK, NAMES, agreed_names, ignore, ignored_by_ddp, on_another_device
from unsloth_accel.fixes import status


MODEL, OUT = sys.argv[1:]
NORM = "base_model.model.model.norm.weight"
BASE = "base_model.model.model.layers.0.mlp.up_proj.base_layer.weight"


def build() -> Any:
    model, _ = FastLanguageModel.from_pretrained(MODEL, max_seq_length=64, dtype=torch.float32, load_in_4bit=False)
    return FastLanguageModel.get_peft_model(model, r=4, target_modules=["up_proj"], random_state=3407)


def prepare(model: nn.Module) -> Any:
    return UnslothAccelerator(plugin=UnslothAcceleratorPlugin(gradient_sync="overlapped")).prepare(model)


def collectives(work: Callable[[], object]) -> dict[str, int]:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        work()
    return dict(Counter(event.name for event in profile.events() if event.name.startswith("c10d::")))


def managed(ddp: Any) -> dict[str, list[str]]:
    """The names of what DDP broadcasts when it is built, and before a forward."""
    taken = {id(parameter) for parameter in ddp._module_parameters}
    return {
        "parameters": [name for name, p in ddp.module.named_parameters() if id(p) in taken],
        "buffers": list(ddp.named_module_buffers),
    }


def state(model: nn.Module) -> list[list[str]]:
    """All that the fix touches: the list of names and the marks."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return [sorted(getattr(model, NAMES, ())), sorted(name for name, tensor in tensors if hasattr(tensor, MARK))]


def buffer_broadcasts(ddp: nn.Module) -> int:
    """In the third forward: DDP sends no buffers in the first one, and its buckets in the second."""
    rows = {"input_ids": torch.tensor([[3, 4, 5]]), "labels": torch.tensor([[3, 4, 5]])}
    for _ in range(2):
        ddp(**rows).loss.backward()
    return collectives(lambda: ddp(**rows)).get("c10d::broadcast_", 0)


def same_on_all_ranks() -> dict[str, Any]:
    model = build()
    before, trained = state(model), [name for name, p in model.named_parameters() if p.requires_grad]
    ddp = prepare(model)
    return {
        "trained": trained,
        **managed(ddp),
        "restored": state(model) == before,
        "broadcasts in a forward": buffer_broadcasts(ddp),
        "plain DDP's": buffer_broadcasts(DistributedDataParallel(build())),
    }


def trained_by_a_trainer() -> dict[str, Any]:
    """The user unfreezes a weight after the trainer was made."""
    model = build()
    arguments = SFTConfig(
        f"{OUT}.run",
        max_steps=1,
        per_device_train_batch_size=1,
        max_length=32,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
    )
    rows = Dataset.from_list([{"text": "every rank has rows of its own"}] * 4)
    trainer = UnslothAcceleratedSFTTrainer(
        model=model, args=arguments, train_dataset=rows, processing_class=AutoTokenizer.from_pretrained(MODEL)
    )
    before = state(model)
    model.get_parameter(NORM).requires_grad_(True)
    trainer.train()
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    return {"trained": trained, **managed(trainer.model_wrapped), "restored": state(model) == before}


def on_two_devices() -> dict[str, Any]:
    """As a 4-bit model whose replaced embedding stays on the CPU; here the other device is the meta device."""
    model = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2, device="meta").requires_grad_(False)])
    try:
        DistributedDataParallel(model)
    except ValueError as error:
        refused = str(error)
    ignore(model, on_another_device(model))
    return {"refused": refused, **managed(DistributedDataParallel(model))}


def undone() -> dict[str, bool]:
    model = build()
    before = state(model)
    undo = ignore(model, agreed_names(model))
    applied = state(model)
    undo()
    return {
        "applied": applied != before and BASE in applied[0] and BASE in applied[1],
        "undone": state(model) == before,
    }


def other_bytes_on_rank_1() -> dict[str, Any]:
    """One value of one weight."""
    model = build()
    if RANK == 1:
        model.get_parameter(BASE).data[1, 2] += 1e-3
    ddp = prepare(model)
    return {"all are DDP's": BASE in managed(ddp)["parameters"], "sum": ddp.module.get_parameter(BASE).sum().item()}


class Normalised(nn.Module):
    """A batch norm whose mean weighs all batches alike, behind a frozen weight and a buffer that is computed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.frozen = nn.Linear(2, 3).requires_grad_(False)
        self.norm = nn.BatchNorm1d(3, momentum=None)
        self.register_buffer("scale", torch.tensor(2.0), persistent=False)

    def forward(self, rows: torch.Tensor) -> Any:
        return self.norm(self.scale * self.frozen(rows))


def statistics_under(block: Callable[[nn.Module], AbstractContextManager[None]]) -> dict[str, Any]:
    """Other rows on each rank, and on rank 1 a forward of its own before each of DDP's."""
    model = Normalised()
    with block(model):
        ddp = DistributedDataParallel(model)
    draw = torch.Generator().manual_seed(RANK)
    for _ in range(3):
        rows = torch.randn(4, 2, generator=draw)
        if RANK == 1:
            model(rows)
        ddp(rows).sum().backward()
    return {**managed(ddp), "statistics": {name: b.tolist() for name, b in model.norm.named_buffers()}}


def running_statistics() -> dict[str, Any]:
    return {"stock": statistics_under(lambda model: nullcontext()), "ours": statistics_under(ignored_by_ddp)}


def told_by_the_status() -> dict[str, str]:
    """What the registry says of the fix before DDP is built, while its model is alive, and after."""

    def said() -> str:
        gc.collect()
        return next(fix.state for fix in status() if fix.name == "frozen_weights")

    states, model = {"before": said()}, Normalised()
    with ignored_by_ddp(model):
        ddp = DistributedDataParallel(model)
    states["wrapped"] = said()
    del model, ddp
    return states | {"freed": said()}


CASES: dict[str, Callable[[], Any]] = {
    "status": told_by_the_status,  # first, while no other model is alive
    "statistics": running_statistics,
    "same": same_on_all_ranks,
    "trainer": trained_by_a_trainer,
    "two devices": on_two_devices,
    "undone": undone,
    "different": other_bytes_on_rank_1,
    "right": lambda: {"sum": build().get_parameter(BASE).sum().item()},
}

if __name__ == "__main__":
    PartialState(cpu=True)  # makes the process group
    write_result(OUT, {name: case() for name, case in CASES.items()})
