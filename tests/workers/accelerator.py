"""A hand-written loop on several ranks: `accelerator.py agree|fail|fp16 OUT`; each rank writes OUT-<rank>.json.

Torch and Accelerate only; Unsloth is not needed to average gradients.
"""

import atexit
import gc
import os
import sys
import time
import weakref
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.local_sgd import LocalSGD
from accelerate.utils import DDPCommunicationHookType, DistributedDataParallelKwargs
from start import RANK, failure, write_result
from torch import nn
from torch.utils.data import DataLoader

from unsloth_accel import PeerError, UnslothAccelerator, UnslothAcceleratorPlugin


WORK, OUT = sys.argv[1:]


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))


def rows():
    """Five batches of two for each of two ranks: with accumulation 2 the last step has one micro-batch."""
    torch.manual_seed(1)
    return [(torch.randn(8), torch.randn(1)) for _ in range(2 * 2 * 5)]


def kind(name, **options):
    if name == "stock":
        return Accelerator(**options)
    return UnslothAccelerator(plugin=UnslothAcceleratorPlugin(gradient_sync=name), **options)


def train(accelerator, epochs=2):
    """The gradient norm of each step, and the weights at the end."""
    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(rows(), batch_size=2))
    norms = []
    for _ in range(epochs):
        for inputs, targets in loader:
            with accelerator.accumulate(model):
                accelerator.backward((model(inputs) - targets).pow(2).mean())
                if accelerator.sync_gradients:
                    norms.append(accelerator.clip_grad_norm_(model.parameters(), 0.5).item())
                optimizer.step()
                optimizer.zero_grad()
    weights = torch.cat([p.detach().reshape(-1) for p in model.parameters()]).tolist()
    accelerator.free_memory()
    watched = weakref.ref(getattr(model, "module", model))
    del model, optimizer, loader
    gc.collect()
    return {"norms": norms, "weights": weights, "alive": watched() is not None}


def wrapped(handler, model=None, **plugin):
    """What DDP was built with."""
    plugin = UnslothAcceleratorPlugin(**plugin)
    accelerator = UnslothAccelerator(plugin=plugin, kwargs_handlers=[handler] if handler else None)
    ddp = accelerator.prepare(model or build())
    names = ("find_unused_parameters", "gradient_as_bucket_view", "static_graph")
    return {name: getattr(ddp, name) for name in names} | {
        "bucket_mb": ddp.bucket_bytes_cap // 2**20,
        "hooks": len(getattr(ddp, "_comm_hooks", ())),
        "deferred": accelerator._runs[0].deferred,
    }


def refused():
    split = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2, device="meta")])
    return failure(UnslothAccelerator().prepare, split)


def stood_down():
    """Under Unsloth's tensor parallelism, which needs no more than its switch to be recognised."""
    os.environ["UNSLOTH_TP_SIZE"] = "2"
    accelerator = UnslothAccelerator()
    ddp = accelerator.prepare(build())
    del os.environ["UNSLOTH_TP_SIZE"]
    return {"wrapped": type(ddp).__name__, "runs": len(accelerator._runs), "fixes": len(accelerator.applied_fixes)}


def apart_at_the_end():
    """The third step, the last, has a loss of its own on a part of the model, whose gradients stay each rank's."""
    accelerator = kind("overlapped")
    model = build()
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    found = []
    for step in range(3):
        accelerator.backward(model(torch.ones(1, 8)).sum())
        if step == 2:
            model.module[0](torch.full((1, 8), RANK + 1.0)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        if step > 0:
            found.append(failure(accelerator.wait_for_everyone))
    accelerator.free_memory()
    return found


def trigger_sync():
    accelerator = kind("overlapped")
    model = build()
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with accelerator.no_sync(model):
        loss = model(torch.ones(1, 8)).sum()
    with accelerator.trigger_sync_in_backward(model):
        accelerator.backward(loss)
    optimizer.step()


def local_sgd():
    accelerator = kind("overlapped")
    model = build()
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with LocalSGD(accelerator=accelerator, model=model, local_sgd_steps=2) as local:
        accelerator.backward(model(torch.ones(1, 8)).sum())
        optimizer.step()
        local.step()


def agree():
    runs = {
        f"{name} {accumulation}": train(kind(name, gradient_accumulation_steps=accumulation))
        for accumulation in (1, 2)
        for name in ("stock", "deferred", "overlapped")
    }
    return {
        "runs": runs,
        "by rule": wrapped(None, gradient_sync="overlapped"),
        "by handler": wrapped(
            DistributedDataParallelKwargs(find_unused_parameters=True, bucket_cap_mb=3), gradient_sync="overlapped"
        ),
        "static graph": wrapped(DistributedDataParallelKwargs(static_graph=True)),
        "hook": wrapped(DistributedDataParallelKwargs(comm_hook=DDPCommunicationHookType.FP16)),
        "by plugin": wrapped(None, gradient_sync="overlapped", gradient_as_bucket_view=False),
        "split": refused(),
        "stood down": stood_down(),
        "refused": [failure(trigger_sync), failure(local_sgd)],
        "apart at the end": apart_at_the_end(),
        "evaluated": type(UnslothAccelerator().prepare_model(build(), evaluation_mode=True)).__name__,
    }


def wait_for(file, seconds=20):
    deadline = time.monotonic() + seconds
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.05)


def fail():
    """Rank 1 fails in the second micro-batch, and rank 0 saves. Rank 1 leaves only after rank 0 has noted why."""
    accelerator = UnslothAccelerator(gradient_accumulation_steps=2)
    model = build()
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    try:
        for step in range(4):
            with accelerator.accumulate(model):
                if RANK == 1 and step == 1:
                    raise ValueError("a row that only rank 1 has")
                accelerator.backward(model(torch.ones(1, 8)).sum())
                optimizer.step()
                optimizer.zero_grad()
            saved = failure(model.module.state_dict)
    except PeerError as error:
        write_result(OUT, {"text": str(error), "saved": saved})
        raise
    except ValueError:
        wait_for(Path(f"{OUT}-0.json"))
        raise


def fp16():
    """Gradients overflow on one rank in the third step: both must skip it, and halve the same scale."""
    results = {}
    for name in ("stock", "deferred"):
        if torch.cuda.is_available():
            accelerator = kind(name, mixed_precision="fp16")
        else:  # where Accelerate makes no scaler: torch's own for the CPU, around float32
            accelerator = kind(name)
            accelerator.scaler = torch.amp.GradScaler("cpu")
        model = build()
        model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-2))
        skipped = []
        for step in range(6):
            inputs = torch.randn(4, 8, generator=torch.Generator().manual_seed(10 * step + RANK))
            factor = float("inf") if RANK == 1 and step == 2 else 1.0
            with accelerator.accumulate(model):
                accelerator.backward(model(inputs.to(accelerator.device)).pow(2).mean() * factor)
                accelerator.clip_grad_norm_(model.parameters(), 0.5)
                optimizer.step()
                skipped.append(optimizer.step_was_skipped)
                optimizer.zero_grad()
        weights = torch.cat([p.detach().reshape(-1) for p in model.parameters()]).tolist()
        results[name] = {"skipped": skipped, "scale": accelerator.scaler.get_scale(), "weights": weights}
        accelerator.free_memory()
    return results


def note_how_it_ended():
    """Registered first, so it runs last: torch warns of a group nobody destroyed only for NCCL."""
    Path(f"{OUT}-{RANK}.group").write_text("left over" if dist.is_initialized() else "destroyed")


if __name__ == "__main__":
    atexit.register(note_how_it_ended)
    write_result(OUT, {"agree": agree, "fail": fail, "fp16": fp16}[WORK]())
