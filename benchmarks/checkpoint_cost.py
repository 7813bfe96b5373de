"""How long a checkpoint takes, transformers' own and ours, round by round on the same ranks.

    ACCELERATE_USE_CPU=true CUDA_VISIBLE_DEVICES=-1 accelerate launch \\
        --config_file accelerate_configs/cpu_gloo.yaml benchmarks/checkpoint_cost.py

Both write the adapter, its optimizer, the scheduler and each rank's random numbers; ours also a manifest with
checksums, and it compares the ranks before. A JSON line for each number of trained weights: the medians of the time
from the moment that all ranks begin until all may go on, and the ratio of each round.
"""

import argparse
import gc
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed

from unsloth_accel import accelerated


SIZES = {"hidden_size": 1024, "intermediate_size": 1024, "num_attention_heads": 8, "num_hidden_layers": 4}


def trained(trainer_class: type[Trainer], folder: Path, rank_of_adapter: int) -> Trainer:
    """A trainer after one step."""
    set_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES, vocab_size=256))
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    model = get_peft_model(model, LoraConfig(r=rank_of_adapter, target_modules=targets))
    rows = Dataset.from_list([{"input_ids": [3, 4, 5, 6], "labels": [3, 4, 5, 6]}] * 8)
    use_cpu = not torch.cuda.is_available()
    arguments = TrainingArguments(
        str(folder), max_steps=1, use_cpu=use_cpu, save_strategy="no", report_to="none", disable_tqdm=True
    )
    trainer = trainer_class(model=model, args=arguments, train_dataset=rows)
    trainer.train()
    return trainer


def seconds(trainer: Trainer, step: int) -> float:
    trainer.state.global_step = step
    dist.barrier()
    began = time.perf_counter()
    trainer._save_checkpoint(trainer.model_wrapped, None)
    dist.barrier()
    spent = time.perf_counter() - began
    if dist.get_rank() == 0:
        shutil.rmtree(Path(trainer.args.output_dir, f"checkpoint-{step}"))
    return spent


def compare(rank_of_adapter: int, rounds: int, folder: Path) -> dict[str, Any]:
    arms = {"transformers": Trainer, "ours": accelerated(Trainer)}
    trainers = {name: trained(arm, folder / name, rank_of_adapter) for name, arm in arms.items()}
    spent: dict[str, list[float]] = {name: [] for name in arms}
    for step in range(1, rounds + 2):  # the first is not counted
        for name, trainer in trainers.items():
            spent[name].append(seconds(trainer, step))
    medians = {name: statistics.median(times[1:]) for name, times in spent.items()}
    ratios = [ours / theirs for ours, theirs in zip(spent["ours"][1:], spent["transformers"][1:], strict=True)]
    weights = sum(p.numel() for p in trainers["ours"].model.parameters() if p.requires_grad)
    return {
        "ranks": dist.get_world_size(),
        "trained_weights": weights,
        "megabytes": round(12 * weights / 1e6),  # fp32, with Adam's two moments
        "seconds": {name: round(median, 4) for name, median in medians.items()},
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "torch": torch.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--adapters", type=int, nargs="+", default=[8, 128, 1024], help="the adapters' ranks")
    parser.add_argument("--folder", help="where to write; default: the system's temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for rank_of_adapter in options.adapters:
            shared: list[Any] = [folder]
            dist.is_initialized() or TrainingArguments(folder, use_cpu=not torch.cuda.is_available()).device
            dist.broadcast_object_list(shared)
            line = compare(rank_of_adapter, options.rounds, Path(shared[0], str(rank_of_adapter)))
            if dist.get_rank() == 0:
                print(json.dumps(line), flush=True)
            gc.collect()


if __name__ == "__main__":
    main()
