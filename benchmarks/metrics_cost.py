"""What the metrics of docs/metrics.md cost.

    python benchmarks/metrics_cost.py
    ACCELERATE_USE_CPU=true accelerate launch --config_file accelerate_configs/cpu_gloo.yaml benchmarks/metrics_cost.py
    UNSLOTH_ACCEL_PLAN=keep accelerate launch --multi_gpu --num_processes 2 benchmarks/metrics_cost.py --model PATH

The first: the host's time for a step on rank 0, the slowest, which also writes the file; a JSON line for each number
of ranks. The second: a run of a model so small that a step is the host's alone, which has its metrics in every other
block of 10 steps. The third, on GPUs: runs with and without them, as benchmarks/gradient_sync.py measures, with its
options.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock


STEPS = 2000


def host_microseconds(ranks: int) -> dict[str, float]:
    """The median step of a model with 28 layers; one step in ten is logged."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

    from unsloth_accel import UnslothAcceleratorPlugin
    from unsloth_accel.ddp.reports import RankReport
    from unsloth_accel.metrics.flops import TokenFlops
    from unsloth_accel.metrics.step_metrics import StepMetrics
    from unsloth_accel.metrics.utilization import Utilization
    from unsloth_accel.plan.layers import checkpointable_layers

    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 28}
    model = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=64))
    values = {"tokens": 5000.0, "computed_tokens": 5100.0, "num_tokens": 5000.0, "SIGTERM": 0.0}
    reports = [RankReport(False, 0.01, 20.0, 1.5, values) for _ in range(ranks)]
    spent = []
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(folder, use_cpu=True, report_to="none")
        trainer = Trainer(model, arguments)
        metrics = StepMetrics(trainer, gradient_sync="deferred", plan=UnslothAcceleratorPlugin().plan)
        flops = TokenFlops.from_model(model)
        metrics._utilization = Utilization(flops, ranks * 1e15, checkpointable_layers(model))  # a CPU has no peak
        for step in range(STEPS):
            trainer.state.global_step = step
            began = time.perf_counter()
            metrics.begin_step()
            metrics.report()
            metrics.decide(reports)()
            if step % 10 == 9:
                logs = {"loss": 1.0, "grad_norm": 0.5, "learning_rate": 1e-4}
                metrics.log(lambda logs=logs: trainer.state.log_history.append({**logs, "step": 1}), logs)
            spent.append(1e6 * (time.perf_counter() - began))
        metrics.close()
    return {"ranks": ranks, "microseconds": round(statistics.median(spent), 1), "torch": torch.__version__}


def compare_on_cpu() -> None:
    import torch
    import torch.distributed as dist
    from accelerate import PartialState
    from blocks import EveryOtherBlock
    from recovery_cost import make
    from transformers import Trainer

    from unsloth_accel import accelerated

    def begin(blocks):
        metrics = trainer._step_metrics
        for name, nothing in (("begin_step", None), ("report", {}), ("decide", None)):
            setattr(metrics, name, blocks.if_on(getattr(metrics, name), nothing))

    PartialState(cpu=True)
    blocks = EveryOtherBlock(begin)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make(accelerated(Trainer), Path(folder), 64, 8, STEPS, blocks)
        trainer.train()
    if dist.get_rank() == 0:
        print(json.dumps({"ranks": dist.get_world_size(), **blocks.figures(), "torch": torch.__version__}), flush=True)


def compare_on_gpus(arguments: list[str]) -> None:
    sys.path.insert(0, __file__.rpartition("/")[0])
    import gradient_sync  # it imports Unsloth first

    class Unmeasured(gradient_sync.UnslothAcceleratedSFTTrainer):
        """Ours, without the metrics."""

        def _step_members(self):
            self._step_metrics.close()
            self._step_metrics = None
            yield from super()._step_members()

    arms = {"without": Unmeasured, "with": gradient_sync.UnslothAcceleratedSFTTrainer}
    run = gradient_sync.run

    def run_arm(arm, *rest):
        with mock.patch.object(gradient_sync, "UnslothAcceleratedSFTTrainer", arms[arm]):
            return run("deferred", *rest)

    gradient_sync.run = run_arm
    defaults = ["--modes", *arms, "--steps", "30", "--rounds", "8", "--work", "4x1:fixed", "8x1:lognormal"]
    sys.argv[1:] = [*defaults, *arguments]
    gradient_sync.main()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    options, _ = parser.parse_known_args()
    if options.model:
        compare_on_gpus(sys.argv[1:])
        return
    if "WORLD_SIZE" in os.environ:
        compare_on_cpu()
        return
    for ranks in (2, 8, 64, 1024):
        print(json.dumps(host_microseconds(ranks)), flush=True)


if __name__ == "__main__":
    main()
