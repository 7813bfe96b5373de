"""One check of `versions.py`, run in the environment of one set: `python versions_checks.py CHECK OUT [arguments]`.

Writes `{"ok": ..., "why": ..., ...}` to OUT, or to OUT-<rank> where there are several. A check that raises is a "no",
and why is the exception.
"""

import contextlib
import importlib
import importlib.metadata as metadata
import importlib.util
import inspect
import json
import os
import random
import re
import sys
from pathlib import Path
from types import SimpleNamespace


ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
WORLD_SIZE = int(os.environ.get("WORLD_SIZE", "1"))
ROWS, GLOBAL_BATCH, MICRO_BATCH, STEPS = 64, 8, 2, 5

# What our trainers and fixes override or call, with the parameters they count on.
SEAMS = {
    "transformers": {
        "transformers.Trainer._build_accelerator_args": ["self", "kwargs"],
        "transformers.Trainer._prepare_for_training": [
            "self",
            "max_steps",
            "train_dataloader",
            "resume_from_checkpoint",
        ],
        "transformers.Trainer.training_step": ["self", "model", "inputs", "num_items_in_batch"],
        "transformers.Trainer.save_model": ["self", "output_dir", "_internal_call"],
        "transformers.Trainer._save": ["self", "output_dir", "state_dict"],
        "transformers.TrainingArguments.ddp_static_graph": None,
    },
    "trl": {
        "trl.SFTTrainer._prepare_dataset": [
            "self",
            "dataset",
            "processing_class",
            "args",
            "packing",
            "formatting_func",
            "dataset_name",
        ],
        "trl.SFTTrainer.compute_loss": ["self", "model", "inputs", "return_outputs", "num_items_in_batch"],
    },
    "unsloth": {
        "unsloth.models._utils.offload_to_disk": ["W", "model", "name", "temporary_location"],
        "unsloth.models.loader.is_automatic_device_map": ["device_map"],
        "unsloth.utils.attention_dispatch._TORCH_VARLEN_ATTN": None,
        "unsloth.utils.attention_dispatch.HAS_FLASH_ATTENTION": None,
        "unsloth.utils.attention_dispatch.HAS_XFORMERS": None,
    },
}


def pins():
    """Whether Unsloth's own metadata allows everything that was installed for it."""
    from packaging.requirements import Requirement

    outside = []
    for package in ("unsloth", "unsloth_zoo"):
        for requirement in map(Requirement, metadata.requires(package)):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                with contextlib.suppress(metadata.PackageNotFoundError):
                    version = metadata.version(requirement.name)
                    if version not in requirement.specifier:
                        outside.append(f"{package} asks for {requirement}, {version} is installed")
    return not outside, "; ".join(outside)


def backend():
    """Whether `import unsloth` works on a machine without a GPU, as it is."""
    importlib.import_module("unsloth")
    return True, ""


def floors():
    """Whether `load_unsloth` says what is too old, all of it in one error, or loads where nothing is."""
    from packaging.version import Version

    from unsloth_accel import VersionError
    from unsloth_accel.imports import FLOORS, check_versions

    old = {name for name, floor in FLOORS.items() if Version(metadata.version(name)).release < Version(floor).release}
    try:
        check_versions()
    except VersionError as error:
        named = {name for name in FLOORS if re.search(rf"\b{name} is ", str(error))}
        return named == old and "pip install --upgrade" in str(error), str(error)
    return not old, ""


def load_gpu_path():
    """Imports the modules that Unsloth has for GPUs and generates its trainers, without a GPU.

    Releases since mid 2026 know UNSLOTH_ALLOW_CPU, but not all get through with it. What they, and older ones, ask the
    driver is answered here, as for a card of compute capability 8.0.
    """
    import torch

    properties = {"name": "none", "total_memory": 2**34, "major": 8, "minor": 0, "is_integrated": 0}
    answers = {
        "get_device_capability": (8, 0),
        "get_device_name": "none",
        "get_device_properties": SimpleNamespace(**properties, multi_processor_count=1, gcnArchName=""),
        "is_bf16_supported": False,
        "mem_get_info": (2**34, 2**34),
    }
    for question, answer in answers.items():
        setattr(torch.cuda, question, lambda *_, answer=answer, **__: answer)
    torch.cuda.memory.mem_get_info = torch.cuda.mem_get_info
    with contextlib.ExitStack() as undo:
        if not knows_allow_cpu():
            undo.callback(setattr, torch.cuda, "is_available", torch.cuda.is_available)
            undo.callback(setattr, torch.cuda, "device_count", torch.cuda.device_count)
            torch.cuda.is_available = lambda: sys._getframe(1).f_code.co_name == "get_device_type"
            torch.cuda.device_count = lambda: 1
            torch._C._cuda_getCurrentRawStream = lambda _: 0
        os.environ["UNSLOTH_ALLOW_CPU"] = "1"
        importlib.import_module("unsloth")
        os.environ["UNSLOTH_ALLOW_CPU"] = "0"
    trl, transformers = importlib.import_module("trl"), importlib.import_module("transformers")
    if trl.SFTTrainer.__module__.startswith("trl."):
        importlib.import_module("unsloth.models.rl").PatchFastRL(None, None)
        importlib.import_module("unsloth.trainer")._patch_trl_trainer()
        importlib.import_module("unsloth.models._utils").patch_gradient_accumulation_fix(transformers.Trainer)
    return trl.SFTTrainer


def knows_allow_cpu():
    zoo = Path(importlib.util.find_spec("unsloth_zoo").origin).parent
    return "UNSLOTH_ALLOW_CPU" in (zoo / "device_type.py").read_text()


def gpu_path():
    """Whether the modules for GPUs load and generate their trainer without one, once the driver's part is answered."""
    trainer = load_gpu_path()
    return trainer.__name__ == "UnslothSFTTrainer", f"trl.SFTTrainer is {trainer.__module__}.{trainer.__name__}"


def seams(package):
    """Whether what we override is there, with the parameters we count on."""
    if package == "unsloth":
        load_gpu_path()
    faults = []
    for path, expected in SEAMS[package].items():
        try:
            found = resolve(path)
        except AttributeError:
            faults.append(f"no {path}")
            continue
        parameters = expected and list(inspect.signature(found).parameters)
        if parameters != expected:
            faults.append(f"{path}({', '.join(parameters)})")
    return not faults, "; ".join(faults)


def resolve(path):
    """What a dotted path names: the longest part of it that is a module, then attributes."""
    parts = path.split(".")
    for count in range(len(parts) - 1, 0, -1):
        with contextlib.suppress(ModuleNotFoundError):
            found = importlib.import_module(".".join(parts[:count]))
            for name in parts[count:]:
                found = getattr(found, name)
            return found
    raise AttributeError(path)


def fixes():
    """Whether every fix can be applied as on several ranks and be taken back."""
    load_gpu_path()
    from unsloth_accel.fixes import apply_fixes

    os.environ.update(RANK="1", WORLD_SIZE="2")
    apply_fixes().undo()
    return True, ""


def train(which, trainer, model_folder):
    """The losses of a few steps with Unsloth's CPU backend (`which` is "backend") or trainer for GPUs ("gpu_path")."""
    if which == "gpu_path":
        load_gpu_path()
    from unsloth_accel.imports import FLOORS

    FLOORS.clear()  # what would happen without our floors is the question here
    if trainer == "plain":
        trainer_class = resolve("trl.SFTTrainer")
    else:
        step_around_missing_seams()
        trainer_class = resolve("unsloth_accel.UnslothAcceleratedSFTTrainer")
    made, result = run(which, trainer_class, model_folder)
    if WORLD_SIZE > 1 and trainer == "accelerated":
        result["sync"] = made.gradient_sync and made.gradient_sync.mode
        result["fixes"] = made.applied_fixes.names
        if len(made.step_reports) != STEPS:
            return False, "trained, but none of the steps went through our reduction", result
    return True, "", result


def step_around_missing_seams():
    """So that it is seen what comes after a missing attribute, which `seams` and `fixes` report."""
    transformers, registry = map(importlib.import_module, ("transformers", "unsloth_accel.fixes.registry"))
    if not hasattr(transformers.TrainingArguments, "ddp_static_graph"):
        transformers.TrainingArguments.ddp_static_graph = None
    loader = sys.modules.get("unsloth.models.loader")
    if loader and not hasattr(loader, "is_automatic_device_map"):
        registry.FIXES = tuple(fix for fix in registry.FIXES if fix.name != "device_map")


def run(which, trainer_class, model_folder):
    model, tokenizer = (load_backend_model if which == "backend" else load_stock_model)(model_folder)
    import datasets
    from trl import SFTConfig

    draw = random.Random(0)
    words = ["rank", "rows", "gradient", "tokens", "step", "weights"]
    texts = [" ".join(draw.choice(words) for _ in range(draw.randint(4, 90))) for _ in range(ROWS)]
    trainer = trainer_class(
        model=model,
        processing_class=tokenizer,
        train_dataset=datasets.Dataset.from_dict({"text": texts}),
        args=SFTConfig(
            output_dir="out",
            # Micro-batches of the same rows whatever the number of ranks.
            per_device_train_batch_size=MICRO_BATCH,
            gradient_accumulation_steps=GLOBAL_BATCH // MICRO_BATCH // WORLD_SIZE,
            max_steps=STEPS,
            max_length=256,
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            optim="adamw_torch",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=1,
            bf16=False,
            use_cpu=True,
        ),
    )
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    return trainer, {name: [float(entry[name]) for entry in logged] for name in ("loss", "grad_norm")}


LORA = {"r": 8, "lora_alpha": 8, "lora_dropout": 0.0}


def load_backend_model(folder):
    import torch
    from unsloth import FastLanguageModel

    model, tokenizer = FastLanguageModel.from_pretrained(
        folder, max_seq_length=256, dtype=torch.float32, load_in_4bit=False
    )
    return FastLanguageModel.get_peft_model(model, random_state=3407, **LORA), tokenizer


def load_stock_model(folder):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(3407)
    lora = LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM", **LORA)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), lora)
    return model, AutoTokenizer.from_pretrained(folder)


def main(check, out, *arguments):
    try:
        ok, why, *more = globals()[check](*arguments)
    except Exception as error:
        text = re.sub(r"/\S*/site-packages/", "", str(error).strip() or "no message")
        ok, why, more = False, f"{type(error).__name__}: {text.splitlines()[0]}", []
    suffix = f"-{os.environ['RANK']}" if WORLD_SIZE > 1 else ""
    Path(f"{out}{suffix}").write_text(json.dumps({"ok": ok, "why": why, **(more[0] if more else {})}))
    sys.stdout.flush()
    os._exit(0 if ok else 1)  # a rank whose peer left in a collective would wait for it at the end


if __name__ == "__main__":
    main(*sys.argv[1:])
