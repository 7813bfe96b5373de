"""Saving by every rank: python save_once.py gpu_path|cpu_backend BASE OUT FULL_DISK.

`gpu_path` runs the saving methods that Unsloth binds to models on a GPU, on a stock PEFT model: `UNSLOTH_ALLOW_CPU`
imports them where there is no GPU. `cpu_backend` runs Unsloth's CPU backend.
"""

import hashlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from start import RANK, failure, write_result


os.environ.pop("UNSLOTH_DISABLE_STATISTICS", None)  # Set by harness.py; offline, Unsloth sends none anyway.
path, base, out, full_disk = sys.argv[1], *map(Path, sys.argv[2:])
seen: dict[str, Any] = {}


def load_gpu_path(model_folder: Path) -> tuple[Any, Any]:
    os.environ["UNSLOTH_ALLOW_CPU"] = "1"
    import unsloth  # noqa: F401

    os.environ["UNSLOTH_ALLOW_CPU"] = "0"
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from unsloth.save import patch_saving_functions

    torch.cuda.get_device_name = lambda *args: "none"
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    torch.manual_seed(0)
    # `init_lora_weights=False` draws B at random, too: a B of zeros would merge nothing.
    lora = LoraConfig(r=8, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    return patch_saving_functions(get_peft_model(model, lora)), AutoTokenizer.from_pretrained(model_folder)


def load_cpu_backend(model_folder: Path) -> tuple[Any, Any]:
    import torch
    from unsloth import FastLanguageModel

    model, tokenizer = FastLanguageModel.from_pretrained(str(model_folder), load_in_4bit=False, max_seq_length=64)
    model = FastLanguageModel.get_peft_model(model, r=8, target_modules=["q_proj", "v_proj", "down_proj"])
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    return model, tokenizer


def digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


def save_by_all(model: Any, reference: Path) -> int:
    """Without the fix, the weights of several ranks against those of one: how many attempts of five differ."""
    wrong = 0
    for attempt in range(5):
        folder = out / f"broken-{attempt}"
        dist.barrier()
        failure(model.save_pretrained_merged, folder)  # when ranks meet in a file, some fail
        dist.barrier()
        wrong += weights(folder) != weights(reference)
    return wrong


def weights(folder: Path) -> dict[str, str]:
    return {name: digest for name, digest in digests(folder).items() if name.endswith(".safetensors")}


def touched(model: Any) -> tuple[list[dict[str, Any]], list[Any]]:
    """All that a fix may change: attributes of the model and of modules, the environment, the log filters."""
    import logging

    owners = [vars(model), vars(sys.modules["torch"]), os.environ]
    owners += [vars(module) for name, module in sys.modules.items() if name.startswith("unsloth.models.")]
    return [dict(owner) for owner in owners], list(logging.getLogger("unsloth_zoo.log").filters)


def load_time_fixes(model: Any) -> None:
    """What `enable_multi_gpu()` applies before a model is loaded, on the functions of Unsloth's GPU path."""
    import torch
    from unsloth.models import _utils, loader

    from unsloth_accel.fixes import apply_fixes

    embeddings = model.get_input_embeddings().weight.detach().clone()
    seen["shared"] = offloaded_unfixed(model, _utils.offload_to_disk)
    seen["automatic"] = [loader.is_automatic_device_map(word) for word in ("auto", "balanced", "sequential")]
    seen["named-device"] = [loader.is_automatic_device_map("cuda:0")]
    with apply_fixes():
        seen["named-device"].append(loader.is_automatic_device_map("cuda:0"))
        _utils.offload_input_embeddings(model, str(out / "offloaded"))
        seen["statistics"] = os.environ.get("UNSLOTH_DISABLE_STATISTICS")
    moved = model.get_input_embeddings()
    seen["offloaded"] = [moved._offloaded_file_location, torch.equal(moved.weight, embeddings)]


def offloaded_unfixed(model: Any, offload: Callable[..., Any]) -> str:
    """Where this rank's embeddings go without the fix; one rank after the other, for it may be one file."""
    path, model.config._name_or_path = model.config._name_or_path, "base"
    for rank in range(dist.get_world_size()):
        if rank == RANK:
            moved = offload(model.get_input_embeddings(), model, "embeddings", str(out / "shared"))
        dist.barrier()
    model.config._name_or_path = path
    return moved._offloaded_file_location


def saved_by_every_rank(model: Any) -> list[str]:
    """The saving methods that Unsloth has bound to this model and the fix does not know."""
    methods = {
        name: method for name, method in vars(model).items() if name.startswith(("save_pretrained_", "push_to"))
    }
    assert len(methods) > 2
    return [name for name, method in methods.items() if not hasattr(method, "_unsloth_accel_saves_once")]


def save_once(model: Any, tokenizer: Any, kind: str, **options: Any) -> None:
    """One process's folder, then the fixed one of all ranks, as new folder and over an old export of other shards."""
    from unsloth_accel.fixes import apply_fixes
    from unsloth_accel.ranks.run_once import run_once

    before = touched(model)
    run_once(
        lambda: model.save_pretrained_merged(out / f"{kind}-one", tokenizer, **options) and None,
        key="save",
        description=f"saving {kind}",
    )
    reference = digests(out / f"{kind}-one")
    if path == "gpu_path":
        seen[f"{kind}-wrong"] = save_by_all(model, out / f"{kind}-one")
    fixes = apply_fixes(model)
    seen["fixes"] = fixes.names
    seen[f"{kind}-forgotten"] = saved_by_every_rank(model)
    model.save_pretrained_merged(
        save_directory=out / f"{kind}-all", tokenizer=tokenizer, is_main_process=RANK == 0, **options
    )
    seen[f"{kind}-equal"] = digests(out / f"{kind}-all") == reference

    shared = out / "reused"
    shared.mkdir(exist_ok=True)
    (shared / "notes.txt").write_text(kind)
    model.save_pretrained_merged(str(shared), tokenizer, **options)
    expected = {*reference, "notes.txt"}
    seen[f"{kind}-reused"] = [
        sorted(digests(shared)) == sorted(expected),
        weights(shared) == weights(out / f"{kind}-one"),
    ]
    dist.barrier()  # Rank 0 waits for nobody when it has saved.
    seen[f"{kind}-later"] = loads_what_all_saved(model, tokenizer, kind)
    fixes.undo()
    seen[f"{kind}-undone"] = touched(model) == before


def loads_what_all_saved(model: Any, tokenizer: Any, kind: str) -> bool:
    """Rank 0 saves alone; the weights change, all save to the same folder, and each rank reads it at once."""
    folder = out / f"{kind}-later"
    if RANK == 0:
        model.save_pretrained_merged(folder, tokenizer)
        before = weights(folder)
    dist.barrier()
    changed = next(parameter for name, parameter in model.named_parameters() if "lora_B" in name)
    original = changed.detach().clone()
    changed.data += 1.0
    model.save_pretrained_merged(folder, tokenizer)
    found = [weights(folder)]
    changed.data.copy_(original)
    dist.broadcast_object_list(mine := [found[0]], src=0)
    return found == mine and (RANK > 0 or found[0] != before)


def fail(model: Any, tokenizer: Any) -> None:
    """A folder that cannot be, a full disk, a call by rank 0 alone; last, rank 0 is killed while it writes."""
    from unsloth_accel.fixes import apply_fixes
    from unsloth_accel.ranks.run_once import run_once

    apply_fixes(model)
    run_once(lambda: (out / "file").touch(), key="touch", description="making a file")
    seen["file"] = failure(model.save_pretrained_merged, out / "file" / "model", tokenizer)
    if full_disk.is_dir():
        seen["full"] = failure(model.save_pretrained_merged, full_disk / "model", tokenizer)
        seen["full-left"] = os.listdir(full_disk)
    seen["push"] = failure(model.push_to_hub_merged, "nobody/nothing", tokenizer)  # there is no network
    if RANK == 0:
        model.save_pretrained_merged(out / "alone", tokenizer)
    write_result(out / path, seen)
    if RANK == 0:
        threading.Thread(target=die_while_writing, daemon=True).start()
    model.save_pretrained_merged(out / "killed", tokenizer)


def die_while_writing() -> None:
    while not list((out / "killed.incomplete").glob("killed/*.safetensors")):
        time.sleep(0.0005)
    os.kill(os.getpid(), signal.SIGKILL)


def reshard() -> str:
    """The merge keeps the shards of the base model."""
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(out / "sharded", max_shard_size="200KB")
    tokenizer.save_pretrained(out / "sharded")
    return str(out / "sharded")


load = {"gpu_path": load_gpu_path, "cpu_backend": load_cpu_backend}[path]
model, tokenizer = load(base)

import torch.distributed as dist


dist.init_process_group("gloo")
if path == "gpu_path":
    from transformers import AutoModelForCausalLM

    from unsloth_accel.ranks.run_once import run_once

    save_once(model, tokenizer, "whole")
    model, tokenizer = load(Path(run_once(reshard, key="reshard", description="sharding the base model")))
    save_once(model, tokenizer, "sharded")
    load_time_fixes(AutoModelForCausalLM.from_pretrained(base))
    fail(model, tokenizer)
save_once(model, tokenizer, "sharded", max_shard_size="200KB")
save_once(model, tokenizer, "whole")
write_result(out / path, seen)
