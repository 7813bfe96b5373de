"""What turns a trainer of transformers or TRL into one that trains Unsloth's models on many ranks."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import islice
from typing import Any

from torch import Tensor, nn

from ..data.prepare_once import prepare_once
from ..ddp.ignored import ignored_by_ddp
from ..ddp.mode import (
    check_ranks_train_together,
    destroy_process_group_at_exit,
    log_stand_down,
    other_mode,
    parallel_mode,
)
from ..ddp.policy import GradientSyncChoice, check_is_whole, configure_ddp, log_policy
from ..ddp.prepare import find_ddp, forget_preparation
from ..ddp.reports import RankReport, StepMember
from ..ddp.run import DataParallelRun
from ..errors import ConfigurationError, GradientSyncError, PeerError
from ..fixes import AppliedFixes, apply_fixes
from ..metrics.step_metrics import StepMetrics
from ..plugin import UnslothAcceleratorPlugin
from ..ranks.environment import is_distributed
from ..ranks.idle_gpus import log_idle_gpus
from ..ranks.logging import log_once
from ..ranks.restarts import begin_attempt
from ..recovery.agreed_stop import AgreedStop
from ..recovery.checkpoints import Checkpoints
from ..recovery.continuation import Continuation
from ..recovery.heartbeat import Progress
from ..recovery.watchdog import Watchdog
from .arguments import bound_arguments, check_arguments, correct_mean_loss
from .saving import SavingMixin
from .signature import signature_with_plugin
from .tokens import TokenCount


# TrainingArguments that carry an explicit value for a field of DDP.
_DDP_ARGUMENTS = {
    "ddp_find_unused_parameters": "find_unused_parameters",
    "ddp_broadcast_buffers": "broadcast_buffers",
    "ddp_static_graph": "static_graph",
    "ddp_bucket_cap_mb": "bucket_cap_mb",
}


class UnslothAcceleratedTrainerMixin(SavingMixin):
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
        gradient_sync ([`GradientSyncChoice`], *optional*):
            How gradients are averaged, and why; None where this is not ours.
        step_reports (`list[list[RankReport]]`):
            For each of the last 1000 optimizer steps of the last `train()`, what each rank reported.

    Raises:
        ConfigurationError: If an argument cannot work on these ranks, or the model is split over several GPUs.
    """

    _run: DataParallelRun | None = None
    _agreed_stop: AgreedStop | None = None
    _watchdog: Watchdog | None = None
    _step_metrics: StepMetrics | None = None
    # The reductions before the step whose micro-batches run now.
    _computing_since: int | None = None
    _given_plugin: UnslothAcceleratorPlugin | None = None
    _can_plan_steps = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.__signature__ = signature_with_plugin(cls)  # type: ignore[attr-defined]

    def __init__(self, *args: Any, plugin: UnslothAcceleratorPlugin | None = None, **kwargs: Any) -> None:
        begin_attempt()
        self.plugin = plugin or self._given_plugin or UnslothAcceleratorPlugin()
        self.applied_fixes = AppliedFixes((), [])
        self.gradient_sync: GradientSyncChoice | None = None
        self._tokens = TokenCount()
        given = bound_arguments(type(self), args, kwargs)
        check_arguments(type(self), given, distributed=is_distributed())
        self._check_model(given.get("model"))
        with apply_fixes():  # while the data are prepared; what concerns the model follows
            super().__init__(*args, **kwargs)
        check_ranks_train_together(self.accelerator)
        other = other_mode(self.accelerator, self.model, self.args)
        if other is not None:
            self._stand_down(other)
        elif self.accelerator.num_processes > 1:
            self._set_up_plain_ddp()
        elif self.args.device.type == "cuda":
            log_idle_gpus()
        if self.gradient_sync is not None or self.plugin.resume is not None:
            self._checkpoints = Checkpoints(self, self.plugin.resume)
            self._continuation = Continuation(self, automatic=self.plugin.resume == "auto")
        if not self._can_plan_steps and (self.plugin.plan not in (None, "keep") or self.plugin.balance):
            log_once("step plan: not used, because a %s computes micro-batches as they are", type(self).__name__)

    def _stand_down(self, mode: str) -> None:
        if self.plugin.resume is not None:
            raise ConfigurationError(
                f"`resume` is {self.plugin.resume!r}, but {mode} writes the checkpoints, in a form of its own. Leave "
                "`resume` out, and pass `resume_from_checkpoint` to `train`."
            )
        log_stand_down(mode)

    def _check_model(self, model: Any) -> None:
        """Before it is moved to a device."""
        if is_distributed() and isinstance(model, nn.Module) and parallel_mode(model) is None:
            check_is_whole(model)

    def _set_up_plain_ddp(self) -> None:
        destroy_process_group_at_exit()
        assert self.model is not None, "transformers has refused a trainer without one"
        # DDP is built when training begins, from the handler that is changed here.
        self.gradient_sync = configure_ddp(self.model, self.plugin, self.accelerator, self._user_set_ddp_fields())
        self.applied_fixes = apply_fixes(self.model)
        correct_mean_loss(self)
        log_policy(self.gradient_sync, self.accelerator.ddp_handler, self.accelerator.num_processes)

    def _user_set_ddp_fields(self) -> set[str]:
        fields = {field for name, field in _DDP_ARGUMENTS.items() if getattr(self.args, name) is not None}
        return fields | set(self.plugin.explicit_ddp_fields())

    @property
    def step_reports(self) -> "list[list[RankReport]]":
        """For each of the last 1000 optimizer steps of the last `train()`, what each rank reported."""
        return [] if self._run is None else list(self._run.step_reports)

    # A run and its steps

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        prepare = super()._prepare_for_training
        choice = self.gradient_sync
        if choice is None or self.model is None:
            prepared = prepare(*args, **kwargs)  # type: ignore[no-untyped-call]
            self._check_first_step()
            return prepared
        if find_ddp(self.model_wrapped) is not None:  # wrapped by an earlier `train()`
            prepared = prepare(*args, **kwargs)  # type: ignore[no-untyped-call]
        else:
            self.model_wrapped = self.model
            forget_preparation(self.model)
            # Not in `__init__`: only what is frozen at the moment of wrapping may stay out of DDP.
            with ignored_by_ddp(self.model):
                prepared = prepare(*args, **kwargs)  # type: ignore[no-untyped-call]
        self._start_run(choice)
        self._check_first_step()
        return prepared

    def _check_first_step(self) -> None:
        if self._continuation is not None:
            self._continuation.check_first_step()

    def _start_run(self, choice: GradientSyncChoice) -> None:
        ddp = find_ddp(self.model_wrapped)
        if ddp is None:
            raise GradientSyncError(
                "`accelerator.prepare` returned the model without DistributedDataParallel around it: gradients would "
                f"stay those of each rank. Pass the trainer the model itself, got a {type(self.model).__name__}."
            )
        if not choice.compiled:
            self._step_metrics = StepMetrics(self, gradient_sync=choice.mode, plan=self._plan_in_words())
            members = list(self._step_members())
            self._run = DataParallelRun(ddp, deferred=choice.mode == "deferred", members=members)

    def _plan_in_words(self) -> Any:
        """How steps are computed, for the record of the run."""
        return "keep"

    def _step_members(self) -> Iterator[StepMember]:
        """Who reports and decides in each optimizer step."""
        yield self._tokens
        if self._agreed_stop is not None:
            yield self._agreed_stop
        if self._step_metrics is not None:
            yield self._step_metrics

    def record_event(self, event: str, **fields: Any) -> None:
        """Adds a line to `metrics.jsonl` in `output_dir`, on rank 0; nothing where several ranks do not train.

        Args:
            event (`str`): Its kind, such as `"plan"`.
            fields: What it says, as JSON can.
        """
        if self._step_metrics is not None:
            self._step_metrics.record(event, **fields)

    def _record_stop(self, reason: str) -> None:
        self.record_event("stop", reason=reason)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As in transformers. A rank that fails in a step tells the others why, and they stop in the same step.

        Raises:
            SystemExit: With 143 after SIGTERM, 138 after SIGUSR1, 0 after the file `stop` in `output_dir`, on
                whichever rank, when a checkpoint has been saved.
        """
        self._run, self._computing_since, self._step_metrics = None, None, None
        choice = self.gradient_sync
        self._agreed_stop = None if choice is None or choice.compiled else AgreedStop(self, self._record_stop)
        self._progress = Progress(lambda: self._run.reductions_begun if self._run else 0)
        self._watchdog = None if self._agreed_stop is None else self._make_watchdog()
        resume_from_checkpoint = self._choose_checkpoint(resume_from_checkpoint)
        try:
            with self._agreed_stop or nullcontext(), self._watchdog or nullcontext():
                output = super().train(resume_from_checkpoint, *args, **kwargs)
                self._settle_step()
                self.record_event("end")
        except PeerError:
            raise  # the others know already
        except Exception:
            if self._run is not None:
                self._run.fail(
                    joins=self._run.reductions_begun == self._computing_since and self._micro_batches_are_local()
                )
            raise
        finally:
            if self._run is not None:
                self._run.close()
            if self._step_metrics is not None:
                self._step_metrics.close()
                self._step_metrics = None
        return output

    def _make_watchdog(self) -> Watchdog:
        assert self.plugin.stall_timeout is not None, "the plugin has filled it in"
        return Watchdog(self._progress, self.plugin.stall_timeout)

    def _micro_batches_are_local(self) -> bool:
        """Whether nothing is gathered between two reductions.

        Where something is, as in TRL's trainers their metrics, the others would wait for a failed rank there and not
        in the reduction: it leaves, and the launcher ends them.
        """
        return False

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; what the ranks said in the step before is read between fetching rows and counting them.

        The count is gathered, and Unsloth's waits for it, so that to wait here costs nothing.
        """
        if self._continuation is not None and self.state.global_step >= self.state.max_steps:
            # A finished run, resumed within an epoch: transformers asks only after a step whether it was the last.
            return [], None
        if self._run is None:
            return super().get_batch_samples(epoch_iterator, num_batches, *args, **kwargs)
        step = self.state.global_step + 1
        self._progress.enter("fetching rows", step)
        batches = list(islice(epoch_iterator, num_batches))
        self._settle_step()
        self._progress.enter("counting rows with the other ranks", step)
        counted = super().get_batch_samples(iter(batches), num_batches, *args, **kwargs)
        self._begin_step(batches)
        return counted

    def _begin_step(self, batches: list[Any]) -> None:
        """Nothing of the step before is left for this one."""
        assert self._run is not None, "a step of ours"
        self._tokens.begin_step(batches)
        if self._step_metrics is not None:
            self._step_metrics.begin_step()
        self._computing_since = self._run.reductions_begun
        first = self._run.reductions_begun == 0  # in which kernels are compiled, on each machine for itself
        self._progress.enter("computing the micro-batches", self.state.global_step + 1, may_last=first)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """As in transformers; where the loss did not run through the wrapped model, gradients are averaged here."""
        if self._run is not None:
            self._progress.move()
        loss = super().training_step(*args, **kwargs)
        run = self._run
        # Unsloth's GRPO runs the model without DDP around it.
        if run is not None and run.has_local_gradients and run.ddp.require_backward_grad_sync:
            run.reduce()
        return loss

    def _settle_step(self) -> None:
        """Takes in what every rank said in the last step; raises if one of them failed."""
        if self._run is not None:
            self._run.settle()

    # Before anything is logged, saved, evaluated or returned, every rank knows what every rank did.

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        act = partial(super()._maybe_log_save_evaluate, *args, **kwargs)
        if self._agreed_stop is None:
            act()
        else:
            self._progress.enter("at the end of the step", self.state.global_step)
            self._agreed_stop.act_together(partial(self._act, act), self._settle_step)
            finishes = self.control.should_training_stop
            self._progress.enter("after the step", self.state.global_step, may_last=finishes)

    def _act(self, act: Callable[[], None]) -> None:
        self._progress.enter("logging, evaluating or saving", self.state.global_step, may_last=True)
        act()
        self._progress.enter("at the end of the step", self.state.global_step)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        self._settle_step()
        if self._run is not None:
            self._run.compare_weights()  # now that the ranks have just met: what follows may take one of them long
        with nullcontext() if self._agreed_stop is None else self._agreed_stop.keeping_checkpoint():
            return super()._finalize_training(*args, **kwargs)  # type: ignore[no-untyped-call]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As in transformers; on several ranks with what docs/metrics.md lists."""
        self._settle_step()
        log = partial(super().log, logs, *args, **kwargs)
        if self._step_metrics is None:
            log()
        else:
            self._step_metrics.log(log, logs)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers."""
        self._settle_step()
        with self._off_the_clock():
            return super().evaluate(*args, **kwargs)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers."""
        self._settle_step()
        return super().predict(*args, **kwargs)

    def _off_the_clock(self) -> AbstractContextManager[None]:
        """What runs inside does not count for the time of a step."""
        return nullcontext() if self._step_metrics is None else self._step_metrics.paused()

    # Data: one rank works for all

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        prepare = super()._prepare_dataset  # type: ignore[misc]  # TRL's trainers have it
        return prepare_once(lambda rows: prepare(rows, *args, **kwargs), dataset)
