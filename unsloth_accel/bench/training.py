"""One training run of one contender, measured. To be imported after what it trains with: it loads transformers."""

import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from datasets import Dataset
from torch import Tensor
from transformers import TrainerCallback

from ..imports import load_unsloth
from ..patching import Undo
from ..plugin import UnslothAcceleratorPlugin
from ..ranks.environment import world_size
from ..step_plan import StepPlanRecord
from .comparison import Comparison
from .contenders import Contender
from .conversations import conversations
from .environment import environment
from .models import precision
from .workload import Workload


# Of transformers' `BatchRebalanceSampler`, which takes no other.
_REBALANCE_SEED = 42
# As in Unsloth's vision notebooks: rows stay conversations until they are collated.
_COLLATED_LATER = {
    "remove_unused_columns": False,
    "dataset_text_field": "",
    "dataset_kwargs": {"skip_prepare_dataset": True},
}


class Clock(TrainerCallback):
    """Waits for the device after the first step, when warm-up is over, and after the last one; not in between.

    Args:
        warmup (`int`): The steps before the time counts.
        steps (`int`): The steps after them.
    """

    def __init__(self, warmup: int, steps: int) -> None:
        self._watched = {1, warmup, warmup + steps}
        self.seen = {0: time.perf_counter()}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """As in transformers."""
        if state.global_step in self._watched:
            _wait_for_device()
            self.seen[state.global_step] = time.perf_counter()


class MicroBatches:
    """Takes the place of a trainer's `training_step`: notes tokens and loss of each micro-batch, and waits for none.

    Args:
        trainer (`transformers.Trainer`): Whose.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer, self._training_step = trainer, trainer.training_step
        self._noted: list[tuple[int, int | Tensor, Tensor]] = []

    def __call__(self, model: Any, inputs: Mapping[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        mask = inputs.get("attention_mask")
        tokens = inputs["input_ids"].numel() if mask is None else mask.sum()
        loss: Tensor = self._training_step(model, inputs, *args, **kwargs)
        self._noted.append((self._trainer.state.global_step, tokens, loss.detach()))
        return loss

    def of_steps(self, count: int) -> tuple[list[int], list[float]]:
        """This rank's tokens, padding excluded, and share of the loss, of each of the `count` steps."""
        tokens, losses = [0] * count, [0.0] * count
        for step, some, loss in self._noted:
            tokens[step] += int(some)
            losses[step] += float(loss)
        return tokens, losses


class Run(NamedTuple):
    """One training run.

    Args:
        figures (`dict`):
            Milliseconds of a timed step; of all ranks together the tokens of the timed steps, and their imbalance; the
            peak memory in GiB of the fullest rank; the loss of every step; the seconds to the end of the first one.
        plan ([`StepPlanRecord`], *optional*): What it found, if it was looking for a plan.
    """

    figures: dict[str, Any]
    plan: StepPlanRecord | None


def train(
    contender: Contender,
    model: Any,
    tokenizer: Any,
    work: Workload,
    comparison: Comparison,
    callbacks: Sequence[TrainerCallback] = (),
) -> Run:
    """Trains once.

    Args:
        contender (`Contender`): How.
        model (`nn.Module`): The model with its adapters.
        tokenizer (`PreTrainedTokenizer` or `ProcessorMixin`): Of the model.
        work (`Workload`): The rows.
        comparison (`Comparison`): The number of steps.
        callbacks (`Sequence[TrainerCallback]`, *optional*): What the trainer calls besides.

    Returns:
        `Run`: What was measured.
    """
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    clock = Clock(comparison.warmup, comparison.steps)
    with ExitStack() as undo:
        trainer = _trainer(contender, model, tokenizer, work, comparison, undo)
        for callback in (clock, *callbacks):
            trainer.add_callback(callback)
        trainer.training_step = micro_batches = MicroBatches(trainer)
        trainer.train()
    plan = trainer.step_plan if contender.tunes else None
    return Run(_figures(clock, micro_batches, comparison), plan)


def _trainer(
    contender: Contender, model: Any, tokenizer: Any, work: Workload, comparison: Comparison, undo: ExitStack
) -> Any:
    """The trainer; what is changed for it is taken back when `undo` closes."""
    if contender.varlen:
        undo.callback(_one_launch_per_layer())
    undo.enter_context(environment(contender.environment))
    folder = undo.enter_context(tempfile.TemporaryDirectory())
    common = {
        "model": model,
        "processing_class": tokenizer,
        "args": arguments(contender, work, comparison, folder),
        "train_dataset": _rows(contender, work, comparison),
    }
    if work.has_images:
        common["data_collator"] = load_unsloth().UnslothVisionDataCollator(model, tokenizer)
    if contender.plugin is not None:
        from ..trainers import UnslothAcceleratedSFTTrainer

        ours = UnslothAcceleratedSFTTrainer(plugin=UnslothAcceleratorPlugin(**contender.plugin), **common)
        undo.callback(ours.applied_fixes.undo)
        return ours
    from trl import SFTTrainer

    return SFTTrainer(**common)


def arguments(contender: Contender, work: Workload, comparison: Comparison, folder: str) -> Any:
    """Those of the trainer; all contenders update in the same way.

    Args:
        contender (`Contender`): Who trains.
        work (`Workload`): The rows.
        comparison (`Comparison`): The number of steps.
        folder (`str`): Where the trainer may write.

    Returns:
        `trl.SFTConfig`: Of the library that is imported.
    """
    from trl import SFTConfig

    steps = comparison.warmup + comparison.steps
    common = {
        "output_dir": folder,
        "per_device_train_batch_size": work.rows,
        "gradient_accumulation_steps": work.accumulation,
        "max_steps": steps,
        "max_length": comparison.sequence,
        "packing": work.batching == "packed",
        # Asked for, because Unsloth would choose by itself, and not the same on one rank and on several. Without
        # flash-attn TRL has no way to keep documents side by side apart.
        "padding_free": work.batching == "padding-free" and contender.library == "unsloth",
        # All of an update, because Unsloth's config warms up and decays where that of TRL does not.
        "learning_rate": 1e-4,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "optim": "adamw_torch",
        "seed": 1,
        "train_sampling_strategy": "sequential",  # so that all train the same rows in each step
        "logging_steps": steps,  # to log is to wait for the device
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
        "bf16": precision() == torch.bfloat16,
        "fp16": precision() == torch.float16,
    }
    with_images = _COLLATED_LATER if work.has_images else {}
    return SFTConfig(**{**common, **with_images, **contender.arguments})


def _rows(contender: Contender, work: Workload, comparison: Comparison) -> Dataset | list[dict[str, Any]]:
    texts = work.texts(comparison.warmup + comparison.steps, world_size(), comparison.sequence)
    if work.has_images:
        return conversations(texts, work.image_sides(len(texts)))
    if contender.arguments.get("train_sampling_strategy") == "batch_rebalance":
        # It shuffles, always in the same way: what lies where it looks is what the others train in that step.
        order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(_REBALANCE_SEED))
        texts = [texts[index] for index in order.argsort().tolist()]
    return Dataset.from_dict({"text": texts})


def _one_launch_per_layer() -> Undo:
    from ..fixes import packed_attention

    if not packed_attention.probe(None).needed:
        return lambda: None
    return packed_attention.apply(None)


def _figures(clock: Clock, micro_batches: MicroBatches, comparison: Comparison) -> dict[str, Any]:
    warmup, steps = comparison.warmup, comparison.steps
    tokens, losses = micro_batches.of_steps(warmup + steps)
    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
    ranks = _of_all_ranks((tokens, losses, peak, clock.seen))
    timed = [sum(step) for step in zip(*(tokens[warmup:] for tokens, *_ in ranks), strict=True)]
    slowest = [max(step) for step in zip(*(tokens[warmup:] for tokens, *_ in ranks), strict=True)]
    seconds = max(seen[warmup + steps] - seen[warmup] for *_, seen in ranks)
    return {
        "ms": round(1000 * seconds / steps, 2),
        "tokens": sum(timed),
        "tokens_per_s": round(sum(timed) / seconds),
        "imbalance": round(len(ranks) * sum(slowest) / sum(timed), 4),
        "peak_gib": round(max(peak for _, _, peak, _ in ranks), 2),
        "first_step_s": round(max(seen[1] - seen[0] for *_, seen in ranks), 2),
        "loss": [
            round(sum(shares) / len(ranks), 5) for shares in zip(*(losses for _, losses, *_ in ranks), strict=True)
        ],
    }


def _of_all_ranks(value: Any) -> list[Any]:
    if world_size() == 1:
        return [value]
    every = [None] * world_size()
    dist.all_gather_object(every, value)
    return every


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
