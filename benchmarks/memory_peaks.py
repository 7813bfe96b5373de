"""The estimate of a rank's memory against torch's peak, on cases that its formula was not made with. For one GPU.

    python benchmarks/memory_peaks.py > peaks.jsonl
    python benchmarks/memory_peaks.py --cases qlora_8b qwen

Each case has random weights, is a process of its own and trains three steps twice: with all layers recomputed, and
with none. Prints a RESULT line of JSON for each of both: the largest batch that the model saw, the estimate for it,
the peak of `torch.cuda.max_memory_allocated`, and what was allocated before. On one rank nothing is averaged. The
largest model takes 18 GB of disk, QLoRA needs bitsandbytes; all of it should take less than four minutes. `tiny`
runs without a GPU and measures nothing.
"""

import argparse
import gc
import json
import os
import random
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from unsloth_accel.bench.random_llama import WORDS, config, tokenizer


STEPS = 3
TIMEOUT_SECONDS = 150


@dataclass(frozen=True)
class Case:
    """`lengths`: "full" rows of `sequence` tokens, or "uneven" ones, which are then padded."""

    size: str
    bits: int = 16
    lora_rank: int | None = 16
    rows: int = 4
    sequence: int = 2048
    lengths: str = "full"


CASES = {
    "qlora_8b": Case("8b", bits=4),
    "lora_8b": Case("8b"),
    "padded_3b": Case("3b", rows=8, lengths="uneven"),
    "full_1b": Case("1b", lora_rank=None),
    "qwen": Case("qwen"),
    "tiny": Case("tiny", rows=2, sequence=64),
}


def model_config(size: str):
    """Of Llama as elsewhere; "qwen" has the shape of Qwen3 1.7B: norms of q and k, wide heads, tied embeddings."""
    if size != "qwen":
        return config(size)
    from transformers import Qwen3Config

    return Qwen3Config(
        vocab_size=151936,
        hidden_size=2048,
        intermediate_size=6144,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=8192,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=True,
    )


def save(size: str, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    with torch.device(device):
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        model = AutoModelForCausalLM.from_config(model_config(size), dtype=dtype)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)


def load_model(case: Case, folder: Path):
    from unsloth_accel.bench.comparison import Comparison
    from unsloth_accel.bench.models import load

    finetuning = "full" if case.lora_rank is None else "qlora" if case.bits == 4 else "lora"
    rank = {} if case.lora_rank is None else {"lora_rank": case.lora_rank}
    return load(
        "unsloth",
        Comparison(model=str(folder), finetuning=finetuning, sequence=case.sequence, works=(), contenders=(), **rank),
    )


def rows_of(case: Case):
    from datasets import Dataset

    draw = random.Random(1)

    def length() -> int:
        if case.lengths == "full":
            return case.sequence + 8
        return max(8, min(case.sequence, int(draw.lognormvariate(5.8, 0.9))))

    return Dataset.from_list([{"text": " ".join(draw.choices(WORDS, k=length()))} for _ in range(STEPS * case.rows)])


def train(case: Case, model, tokens, layers_kept, out: Path) -> dict:
    """Three steps. Returns the tokens of the largest batch, padding included, and the peak in GiB."""
    import torch
    from trl import SFTConfig

    from unsloth_accel import StepPlan, UnslothAcceleratedSFTTrainer, UnslothAcceleratorPlugin

    on_gpu = torch.cuda.is_available()
    trainer = UnslothAcceleratedSFTTrainer(
        model=model,
        processing_class=tokens,
        args=SFTConfig(
            output_dir=str(out),
            per_device_train_batch_size=case.rows,
            max_steps=STEPS,
            max_length=case.sequence,
            optim="adamw_torch",
            bf16=on_gpu,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=1,
        ),
        train_dataset=rows_of(case),
        plugin=UnslothAcceleratorPlugin(plan=StepPlan(layers_kept=layers_kept, balance=False)),
    )
    batches: list[int] = []
    watch = model.register_forward_pre_hook(
        lambda _, __, inputs: batches.append(inputs["input_ids"].numel()), with_kwargs=True
    )
    gc.collect()  # what a trainer before this one has left
    before = torch.cuda.memory_allocated() / 2**30
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    trainer.train()
    watch.remove()
    peak = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None
    return {"tokens": max(batches), "batches": len(batches), "before_gib": before, "measured_gib": peak}


def estimated(case: Case, tokens: int, layers_kept: int) -> float:
    from unsloth_accel.plan.decoder import DecoderShape
    from unsloth_accel.plan.memory import estimate_largest

    shape = DecoderShape.from_config(model_config(case.size))
    return estimate_largest(shape, tokens, layers_kept, case.bits, case.lora_rank).peak


def run_case(name: str, folder: Path) -> None:
    import torch
    import unsloth  # before transformers, which `save` imports, and before torch is asked for anything

    case, model_folder = CASES[name], folder / CASES[name].size
    if not model_folder.exists():
        save(case.size, model_folder)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    model, tokens = load_model(case, model_folder)
    layers = model_config(case.size).num_hidden_layers
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    for kept in (0, layers):
        found = train(case, model, tokens, kept, folder / "out")
        said = {"case": name, "layers_kept": kept, "layers": layers, **found}
        said["estimated_gib"] = estimated(case, found["tokens"], kept)
        if found["measured_gib"] is not None:
            said["error"] = said["estimated_gib"] / found["measured_gib"] - 1
        said |= {"gpu": gpu, "torch": torch.__version__, "unsloth": unsloth.__version__}
        print("RESULT " + json.dumps(said), flush=True)


def start(name: str, folder: Path) -> bool:
    """Runs a case in a process of its own. Returns whether it came to its end."""
    padding = "padded" if CASES[name].lengths == "uneven" else "padding_free"
    env = {"UNSLOTH_COMPILE_DISABLE": "1", "UNSLOTH_PADDING_CHOICE": padding, "HF_HUB_OFFLINE": "1", **os.environ}
    command = [sys.executable, __file__, "--cases", name, "--folder", str(folder)]
    try:
        return subprocess.run(command, env=env, timeout=TIMEOUT_SECONDS, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        print(f"{name}: not done after {TIMEOUT_SECONDS} s", file=sys.stderr)
        return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cases = [name for name in CASES if name != "tiny"]
    parser.add_argument("--cases", nargs="+", choices=CASES, default=cases)
    parser.add_argument("--folder", type=Path, help="runs the first case in this process, with its model in here")
    options = parser.parse_args()
    if options.folder is not None:
        run_case(options.cases[0], options.folder)
        return 0
    with tempfile.TemporaryDirectory(prefix="memory_peaks_") as folder:
        ended = [start(name, Path(folder)) for name in options.cases]
    return 0 if all(ended) else 1


if __name__ == "__main__":
    sys.exit(main())
