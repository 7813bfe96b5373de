"""What turns a trainer of transformers or TRL into one that trains Unsloth's models on many ranks."""

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..data.prepare_once import prepare_once
from ..ddp.ignored import ignored_by_ddp
from ..ddp.mode import (
    check_ranks_train_together,
    destroy_process_group_at_exit,
    log_stand_down,
    parallel_mode,
    runs_ddp,
)
from ..ddp.policy import GradientSyncChoice, configure_ddp, log_policy
from ..ddp.reduction import RankReport, StepReduction
from ..errors import ConfigurationError
from ..fixes import AppliedFixes, apply_fixes
from ..plugin import UnslothAcceleratorPlugin
from ..ranks.idle_gpus import log_idle_gpus
from ..ranks.run_once import run_once
from ..saving.atomic_directory import atomic_directory


if TYPE_CHECKING:
    from transformers import Trainer, TrainerCallback, TrainingArguments

    _Base = Trainer
else:
    _Base = object

# Steps that `step_reports` remembers.
KEPT_STEPS = 1000
# TrainingArguments that carry an explicit value for a field of DDP.
_DDP_ARGUMENTS = {
    "ddp_find_unused_parameters": "find_unused_parameters",
    "ddp_broadcast_buffers": "broadcast_buffers",
    "ddp_static_graph": "static_graph",
    "ddp_bucket_cap_mb": "bucket_cap_mb",
}


class UnslothAcceleratedTrainerMixin(_Base):
    """Teaches a trainer of transformers or TRL to train Unsloth's models with data parallelism.

    Put it before the trainer class: `class MyTrainer(UnslothAcceleratedTrainerMixin, trl.SFTTrainer)`, after
    Unsloth was imported; [`accelerated`] does that for you. On one process, and under FSDP, DeepSpeed or Unsloth's
    native parallel modes, the trainer trains and saves exactly as its base class does.

    Args:
        plugin ([`UnslothAcceleratorPlugin`], *optional*):
            The choices for data-parallel training. Defaults to one read from the environment.

    Attributes:
        applied_fixes ([`AppliedFixes`]):
            The handle that takes back the fixes this trainer applied.
        step_reports (`list[list[RankReport]]`):
            For each of the last 1000 optimizer steps, what each rank told: `tokens`, `wait_seconds` in the reduction
            of the step before, `peak_memory_gib`.

    Raises:
        ConfigurationError: If the batch size is below 1, the model is split over several GPUs, or a trainer of rewards
            is given a language model.
    """

    # Whether nothing is gathered inside a micro-batch. Where something is, as in TRL's trainers their metrics, the
    # others would wait for a failed rank there and not in the reduction: it leaves, and the launcher ends them.
    _micro_batches_are_local = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        base = inspect.signature(super().__init__)
        plugin = inspect.Parameter("plugin", inspect.Parameter.KEYWORD_ONLY, default=None)
        named = [p for p in base.parameters.values() if p.name != "self"]
        rest = [p for p in named if p.kind is inspect.Parameter.VAR_KEYWORD]
        named = [p for p in named if p.kind is not inspect.Parameter.VAR_KEYWORD]
        cls.__signature__ = inspect.Signature([*named, plugin, *rest])  # type: ignore[attr-defined]

    def __init__(self, *args: Any, plugin: UnslothAcceleratorPlugin | None = None, **kwargs: Any) -> None:
        self.plugin = plugin or UnslothAcceleratorPlugin()
        self.applied_fixes = AppliedFixes((), [])
        self.step_reports: list[list[RankReport]] = []
        self._gradient_sync: GradientSyncChoice | None = None
        self._step_reduction: StepReduction | None = None
        self._step_tokens: Tensor | float = 0
        _check_arguments(args[1] if len(args) > 1 else kwargs.get("args"))
        _check_gives_rewards(type(self), args[0] if args else kwargs.get("model"))
        with apply_fixes():  # while the data are prepared; what concerns the model follows
            super().__init__(*args, **kwargs)
        check_ranks_train_together(self.accelerator)
        if self._runs_plain_ddp():
            destroy_process_group_at_exit()
            self.add_callback(_reduction_callback(self))
            self.applied_fixes = apply_fixes(self.model)
            if self._gradient_sync is not None:
                log_policy(self._gradient_sync, self.accelerator.ddp_handler, self.accelerator.num_processes)
        elif self.accelerator.num_processes > 1:
            log_stand_down(self._other_mode() or self.accelerator.distributed_type.value)
        elif self.args.device.type == "cuda":
            log_idle_gpus()

    def _runs_plain_ddp(self) -> bool:
        return runs_ddp(self.accelerator) and self._other_mode() is None

    def _other_mode(self) -> str | None:
        """Names the mode that trains the model instead of plain data parallelism, as far as Accelerate does not."""
        if (getattr(self.args, "context_parallel_size", None) or 1) > 1:
            return "Unsloth's context parallelism"
        return parallel_mode(self.model)

    def _build_accelerator_args(self, **kwargs: Any) -> dict[str, Any]:
        arguments = super()._build_accelerator_args(**kwargs)
        plain = self.args.world_size > 1 and _is_plain_ddp(arguments) and self._other_mode() is None
        if plain and isinstance(self.model, nn.Module):
            handlers = self.plugin.to_handlers(arguments["kwargs_handlers"])
            handler = next(h for h in handlers if isinstance(h, DistributedDataParallelKwargs))
            self._gradient_sync = configure_ddp(self.model, self.plugin, handler, self._user_set_ddp_fields())
            arguments["kwargs_handlers"] = handlers
        return arguments

    def _user_set_ddp_fields(self) -> set[str]:
        fields = {field for name, field in _DDP_ARGUMENTS.items() if getattr(self.args, name) is not None}
        return fields | set(self.plugin.explicit_ddp_fields())

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        prepare = super()._prepare_dataset  # type: ignore[misc]  # TRL's trainers have it
        return prepare_once(lambda rows: prepare(rows, *args, **kwargs), dataset)

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        prepare = super()._prepare_for_training
        model = self.model
        if not isinstance(model, nn.Module) or self.model_wrapped is not model or not self._runs_plain_ddp():
            return prepare(*args, **kwargs)  # type: ignore[no-untyped-call]
        # Not in `__init__`: only what is frozen at the moment of wrapping may stay out of DDP.
        with ignored_by_ddp(model):
            return prepare(*args, **kwargs)  # type: ignore[no-untyped-call]

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As in transformers; the other ranks wait for the one that writes, and its error is raised on all of them."""
        save = super().save_model
        if not self._runs_plain_ddp():
            save(output_dir, _internal_call)
            return
        run_once(
            lambda: save(output_dir, _internal_call),
            name=f"saving to {output_dir or self.args.output_dir}",
            scope="node" if self.args.save_on_each_node else "world",
        )

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if not self._runs_plain_ddp():
            super()._save(output_dir, state_dict)
            return
        folder = output_dir or self.args.output_dir
        assert folder is not None, "TrainingArguments have a default"
        with atomic_directory(folder) as beside:
            super()._save(beside, state_dict)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """As in transformers; after the last micro-batch of a step gradients and each rank's numbers are reduced."""
        reduction = self._step_reduction
        if reduction is None:
            return super().training_step(model, inputs, num_items_in_batch)
        try:
            self._step_tokens = self._step_tokens + count_tokens(inputs)
            loss = super().training_step(model, inputs, num_items_in_batch)
        except Exception:
            if self._micro_batches_are_local:
                reduction.announce_failure()
            raise
        if self.accelerator.sync_gradients:
            reduction.run(self._step_tokens, self._step_numbers())
            self._step_tokens = 0
        return loss

    def _start_reducing(self) -> None:
        """Takes over the model that `train()` has just wrapped, before its first micro-batch."""
        self.step_reports = []
        self._step_reduction = None
        if self._gradient_sync is not None and isinstance(self.model_wrapped, DistributedDataParallel):
            deferred = self._gradient_sync.mode == "deferred"
            self._step_reduction = StepReduction(
                self.model_wrapped, deferred=deferred, num_numbers=self._num_step_numbers()
            )

    def settle_step(self) -> None:
        """Takes in what every rank said in the step's reduction; raises if one of them failed."""
        if self._step_reduction is not None:
            rows = self._step_reduction.rows()
            self._take_rows(rows)
            self.step_reports.append([row._replace(numbers=()) for row in rows])
            del self.step_reports[:-KEPT_STEPS]

    def _num_step_numbers(self) -> int:
        """How many numbers of its own this trainer adds to each rank's row; the same on all ranks in all steps."""
        return 0

    def _step_numbers(self) -> list[float]:
        """This rank's own numbers for the step that ends, at most `_num_step_numbers()` of them."""
        return []

    def _take_rows(self, rows: list[RankReport]) -> None:
        """Receives every rank's row after the step's reduction, with the numbers of this trainer."""


def _reduction_callback(trainer: UnslothAcceleratedTrainerMixin) -> "TrainerCallback":
    """Calls the trainer at the two moments that no overridable method marks."""
    from transformers import TrainerCallback

    class ReduceOncePerStep(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            trainer._start_reducing()

        # The optimizer's work is queued by now, so waiting costs nothing, and nothing is logged or saved yet.
        def on_step_end(self, *_: Any, **__: Any) -> None:
            trainer.settle_step()

    return ReduceOncePerStep()


def _check_arguments(arguments: "TrainingArguments | None") -> None:
    """Before the data are prepared, which can take long."""
    if arguments is not None and arguments.per_device_train_batch_size < 1:
        raise ConfigurationError(
            f"`per_device_train_batch_size` must be at least 1, got {arguments.per_device_train_batch_size}."
        )


def _check_gives_rewards(trainer_class: type, model: Any) -> None:
    """TRL trains a language model's logits as if they were rewards, and says nothing."""
    if not any(cls.__name__.endswith("RewardTrainer") for cls in trainer_class.__mro__):
        return
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if getattr(head, "out_features", 1) > 1:
        raise ConfigurationError(
            f"`model` must give one reward for each row, got a language model ({type(model).__name__}). Load it with "
            "`FastLanguageModel.from_pretrained(..., num_labels=1)`; without a GPU, where Unsloth ignores that, with "
            "`AutoModelForSequenceClassification.from_pretrained(..., num_labels=1)`."
        )


def _is_plain_ddp(arguments: dict[str, Any]) -> bool:
    return not any(arguments.get(name) for name in ("deepspeed_plugin", "fsdp_plugin", "parallelism_config"))


def count_tokens(inputs: Any) -> Tensor | float:
    """Real tokens of one micro-batch, padding not counted; stays on the device, so nothing waits for it.

    0 for a list of rows, as TRL's GRPO gets it: what it will generate from them has no length yet.
    """
    if not isinstance(inputs, Mapping):
        return 0
    mask = inputs.get("attention_mask")
    if isinstance(mask, Tensor) and mask.dim() == 2:
        return mask.sum()
    ids = inputs.get("input_ids")
    return ids.numel() if isinstance(ids, Tensor) else 0
