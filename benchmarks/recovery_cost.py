"""What it costs that a run can be stopped, killed and resumed: a JSON line a case, each round with and without.

    ACCELERATE_USE_CPU=true CUDA_VISIBLE_DEVICES=-1 accelerate launch \\
        --config_file accelerate_configs/cpu_gloo.yaml benchmarks/recovery_cost.py

`checkpoint`, for adapters of several sizes: transformers' own and ours, which also compares the ranks and writes a
manifest with checksums; the time from the moment that all ranks begin until all may go on. Medians over the rounds,
the first left out. `step`: the time of an optimizer step of a model so small that it is the host's alone, with and
without what the agreed stop and the watchdog have the main thread do, in blocks of one run.
"""

import argparse
import gc
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from blocks import EveryOtherBlock
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed

from unsloth_accel import accelerated


USE_CPU = not torch.cuda.is_available()
STEPS = 2000


def make(
    trainer_class: type[Trainer], folder: Path, hidden: int, adapter: int, steps: int, *callbacks: Any
) -> Trainer:
    set_seed(0)
    sizes = {"hidden_size": hidden, "intermediate_size": hidden, "num_attention_heads": 8, "num_hidden_layers": 4}
    model = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=256))
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    model = get_peft_model(model, LoraConfig(r=adapter, target_modules=targets))
    rows = Dataset.from_list([{"input_ids": [3, 4, 5, 6], "labels": [3, 4, 5, 6]}] * 8)
    chosen = {"save_strategy": "no", "report_to": "none", "disable_tqdm": True, "logging_steps": 10}
    arguments = TrainingArguments(str(folder), max_steps=steps, use_cpu=USE_CPU, **chosen)
    return trainer_class(model=model, args=arguments, train_dataset=rows, callbacks=list(callbacks))


def interleaved(arms: dict[str, Callable[[int], float]], rounds: int) -> dict[str, Any]:
    """The seconds of each arm, and the second's share of the first's, round by round."""
    spent: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(rounds + 1):
        for name, arm in arms.items():
            spent[name].append(arm(number))
    first, second = (times[1:] for times in spent.values())
    ratios = [after / before for before, after in zip(first, second, strict=True)]
    return {
        "seconds": {name: round(statistics.median(times[1:]), 6) for name, times in spent.items()},
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
    }


def checkpoint(folder: Path, rounds: int, adapter: int) -> dict[str, Any]:
    trainers = {
        name: make(trainer_class, folder / f"{name}-{adapter}", 1024, adapter, 1)
        for name, trainer_class in (("transformers", Trainer), ("ours", accelerated(Trainer)))
    }
    for trainer in trainers.values():
        trainer.train()

    def save(trainer: Trainer, number: int) -> float:
        trainer.state.global_step = number + 1
        dist.barrier()
        began = time.perf_counter()
        trainer._save_checkpoint(trainer.model_wrapped, None)
        dist.barrier()
        spent = time.perf_counter() - began
        if dist.get_rank() == 0:
            shutil.rmtree(Path(str(trainer.args.output_dir), f"checkpoint-{number + 1}"))
        return spent

    arms = {name: lambda number, trainer=trainer: save(trainer, number) for name, trainer in trainers.items()}
    weights = sum(p.numel() for p in trainers["ours"].model.parameters() if p.requires_grad)
    megabytes = round(12 * weights / 1e6)  # fp32, with Adam's two moments
    return {"case": "checkpoint", "trained_weights": weights, "megabytes": megabytes} | interleaved(arms, rounds)


def step(folder: Path) -> dict[str, Any]:
    def begin(blocks: EveryOtherBlock) -> None:
        progress, stop = trainer._progress, trainer._agreed_stop
        for name in ("enter", "move"):
            setattr(progress, name, blocks.if_on(getattr(progress, name), None))
        stop.report = blocks.if_on(stop.report, dict.fromkeys(stop.columns, 0.0))
        stop.decide = blocks.if_on(stop.decide, None)
        together = stop.act_together
        stop.act_together = lambda act, settle: together(act, settle) if blocks.is_on else act()

    blocks = EveryOtherBlock(begin)
    trainer = make(accelerated(Trainer), folder / "step", 64, 8, STEPS, blocks)
    trainer.train()
    return {"case": "step"} | blocks.figures()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--adapters", type=int, nargs="*", default=[8, 128, 1024], help="ranks of the adapters")
    parser.add_argument("--folder", help="where to write; default: the system's temporary folder")
    options = parser.parse_args()
    PartialState(cpu=USE_CPU)
    with tempfile.TemporaryDirectory(dir=options.folder) as own:
        shared = [own]
        dist.broadcast_object_list(shared)
        folder = Path(shared[0])
        cases: list[Callable[[], dict[str, Any]]] = [lambda: step(folder)]
        cases += [lambda adapter=adapter: checkpoint(folder, options.rounds, adapter) for adapter in options.adapters]
        for case in cases:
            line = case() | {"ranks": dist.get_world_size(), "torch": torch.__version__}
            if dist.get_rank() == 0:
                print(json.dumps(line), flush=True)
            gc.collect()
        dist.barrier()  # before the folder goes


if __name__ == "__main__":
    main()
