"""One run of data-parallel training: who reduces when, what the ranks then know, and how it ends."""

import time
import traceback
from collections import deque
from collections.abc import Sequence
from itertools import count
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import ConfigurationError, GradientSyncError, PeerError
from ..ranks.agreement import gather_values
from ..ranks.store import fetch_error, find_errors, publish_error, withdraw_error
from .backward import EndOfBackward
from .checksum import WeightsChecksum, checksum_of_all
from .chunks import TrainedChunks
from .guard import OptimizerGuard
from .hooks import only_on
from .reducer import check_what_is_reduced, note_what_is_reduced
from .reduction import GradientReduction
from .reports import RankReport, ReportExchange, SentReports, StepMember, Stopwatch
from .saving import refuse_saving


# Steps whose reports are remembered.
KEPT_STEPS = 1000
# How long a failed rank waits for the others to come to the reduction before it leaves.
FAILURE_SECONDS = 60.0
# How long a rank waits for the others to say what they train, when that has changed, and what their weights are.
AGREEMENT_SECONDS = 60.0

# Runs are made in the same order on all ranks.
_runs = count()
# The last run of each model.
_run_of: "WeakKeyDictionary[nn.Module, ref[DataParallelRun]]" = WeakKeyDictionary()


class DataParallelRun:
    """Averages gradients at the end of each backward and exchanges one report a rank.

    Torch's DDP reduces inside backward. Under Unsloth's reentrant checkpointing its hooks can fire twice, and a rank
    that fails in backward leaves the others waiting. Deferred, DDP's reducer stays unarmed and all gradients are
    averaged in one reduction when the backward is complete. Reports ride behind it and are read one step later, or by
    [`settle`], so that the host never waits for them in between.

    A run ends with [`close`], or when another one begins with the same model.

    Args:
        ddp (`DistributedDataParallel`):
            The wrapped model.
        deferred (`bool`):
            Whether gradients are averaged here. If not, DDP's reducer does that and only the reports are exchanged.
        members (`Sequence[StepMember]`, *optional*):
            Who else reports and decides; the same on all ranks.

    Raises:
        ConfigurationError: If the ranks train different parameters or have different members; or DDP's reducer is to
            average what was frozen or unfrozen since the first run of this `ddp`.
    """

    def __init__(self, ddp: DistributedDataParallel, *, deferred: bool, members: Sequence[StepMember] = ()) -> None:
        self.ddp, self.deferred = ddp, deferred
        self.reductions_begun = 0  # reductions so far, the one that runs included
        self._number = next(_runs)
        self.step_reports: deque[list[RankReport]] = deque(maxlen=KEPT_STEPS)
        self._group, self._members = ddp.process_group, tuple(members)
        everything = list(ddp.module.parameters())
        self._trained = TrainedChunks(everything)
        self._device = self._trained.parameters[0].device
        columns = [column for member in self._members for column in member.columns]
        self._names = {id(p): name for name, p in ddp.module.named_parameters()}
        self._agree_on("what is trained", self._names_of(self._trained.parameters))
        self._agree_on("what is reported", columns)
        note_what_is_reduced(ddp)
        self._check_reducer()
        withdraw_error()  # all are here, so what ended a run before is known and over
        self._reduction = GradientReduction(self._trained, self._group)
        self._exchange = ReportExchange(columns, self._group, self._device)
        self._checksum, self._stopwatch = WeightsChecksum(), Stopwatch(self._device)
        self._sent: SentReports | None = None
        self._waited = 0.0
        self._compared = 0  # the reductions before the last comparison of all weights
        _close_run_of(ddp.module)
        _run_of[ddp.module] = ref(self)
        self._guard = OptimizerGuard(everything)
        self._backward = EndOfBackward(
            ddp,
            deferred=deferred,
            on_synced=self.reduce,
            on_local=self._guard.note_local,
            on_joined=self._guard.note_reduced,
        )
        self._saving = ddp.module.register_state_dict_pre_hook(only_on(ddp.module, self._refuse_failed_step))

    def close(self) -> None:
        """Hands the gradients back to DDP's reducer, and forgets the model's hooks."""
        self._backward.close()
        self._guard.close()
        self._saving.remove()

    @property
    def has_local_gradients(self) -> bool:
        """Whether a backward has run that no reduction followed."""
        return self._guard.has_local

    def reduce(self) -> None:
        """Averages the gradients, if they are deferred, and sends this rank's report. On a GPU it only enqueues."""
        if self._guard.applied:
            self.settle()
        else:  # a second backward in the same step, as of FGM: its reports take the place of the first's
            self._receive()
        self.reductions_begun += 1
        self._refresh()
        try:
            self._exchange_step()
        except RuntimeError as lost:  # a connection that a failing rank closed; or this rank's own, raised as it is
            _raise_peers_error(lost)
            raise
        self._guard.note_reduced()

    def _exchange_step(self) -> None:
        presence = [p.grad is not None for p in self._trained.parameters]
        checksum = self._checksum.compute(self._trained.chunks)
        self._stopwatch.start()
        missing = self._reduction.average() if self.deferred else []
        sent = self._send(presence, checksum)
        if missing:
            somewhere = sent.presence()
            self._reduction.forget([index for index in missing if not somewhere[index]])

    def _refresh(self) -> None:
        """Takes in layers that were frozen or unfrozen since the last step, which every rank must have done."""
        before = self._trained.parameters
        if self._trained.refresh():
            now = self._names_of(self._trained.parameters)
            changed = sorted(set(now).symmetric_difference(self._names_of(before)))
            try:
                self._agree_on("what is trained", now)
            except PeerError as late:
                raise ConfigurationError(
                    f"This rank has changed `requires_grad` of {changed[0]} ({len(changed)} parameters in all), and "
                    f"not every rank has: {late} Freeze and unfreeze on all ranks."
                ) from late
            self._check_reducer()

    def _check_reducer(self) -> None:
        if not self.deferred:
            check_what_is_reduced(self.ddp)

    def _send(self, presence: Sequence[bool], checksum: Tensor | None) -> SentReports:
        values: dict[str, float | Tensor] = {}
        for member in self._members:
            values.update(member.report())
        tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        if checksum is not None:
            tensors["weights_checksum"] = checksum
        numbers = {name: float(value) for name, value in values.items() if not isinstance(value, Tensor)}
        report = RankReport(False, self._waited, self._peak_memory_gib(), 0.0, numbers)
        self._sent = sent = self._exchange.send(presence, report, tensors)
        self._stopwatch.stop()
        return sent

    def settle(self) -> None:
        """Takes in what every rank said in the last reduction; does nothing where that was done.

        To be called before anything is logged, saved, evaluated or returned, and before other collectives.

        Raises:
            PeerError: If a rank failed in that step.
            GradientSyncError: If the ranks hold different weights.
        """
        ranks = self._receive()
        if ranks:
            self.step_reports.append(ranks)
            for action in [member.decide(ranks) for member in self._members]:
                if action is not None:
                    action()

    def _receive(self) -> list[RankReport]:
        """What every rank said in the last reduction, once; raises if one failed or went its own way."""
        if self._sent is None:
            return []
        ranks, self._sent = self._sent.reports(), None
        self._waited = self._stopwatch.seconds()
        self._raise_for_failure(ranks)
        _raise_for_difference([report.weights_checksum for report in ranks])
        return ranks

    def _refuse_failed_step(self, *_: Any) -> None:
        """Raises where weights are to be saved before it was read that a rank has failed.

        The reports are left to [`settle`]: where one rank alone saves, members must not act on that rank alone.
        """
        if self._sent is not None:
            self._raise_for_failure(self._sent.reports())

    def compare_weights(self) -> None:
        """Compares all trained weights over the ranks, for the last step: the reports hold those before its update.

        To be called where all ranks have come, as behind a barrier. After a reduction it is done once.

        Raises:
            GradientSyncError: If the ranks hold different weights.
            PeerError: If a rank does not come.
        """
        if self._compared < self.reductions_begun:
            self._compared = self.reductions_begun
            key = f"weights in run {self._number}, reduction {self.reductions_begun}"
            mine = checksum_of_all(self._trained.chunks)
            _raise_for_difference(gather_values(key, mine, AGREEMENT_SECONDS))

    def fail(self, *, joins: bool) -> None:
        """Tells the others why this rank fails: to be called where the error is handled.

        Args:
            joins (`bool`): Whether the next collective of the others is this run's reduction. Then this rank takes
                part in it, and they stop with its error; else it must leave at once, and the launcher ends them.
        """
        publish_error(traceback.format_exc())
        if joins and self.deferred:
            deadline = time.monotonic() + FAILURE_SECONDS
            if self._reduction.join_as_failed(deadline):
                self._exchange.send_failure(len(self._trained.parameters), deadline)

    def _raise_for_failure(self, ranks: Sequence[RankReport]) -> None:
        failed = [rank for rank, report in enumerate(ranks) if report.failed]
        if not failed:
            return
        text = f"Rank {failed[0]} failed in this optimizer step:\n{fetch_error(failed[0])}"
        if self._guard.applied:
            refuse_saving(self.ddp.module, f"The weights hold an update in which rank {failed[0]} had no part")
            text += "\nThe weights hold that step's update, so they cannot be saved: the last checkpoint is the state."
        raise PeerError(text)

    def _names_of(self, parameters: Sequence[nn.Parameter]) -> list[str]:
        return [f"{self._names[id(p)]} {tuple(p.shape)} {p.dtype}" for p in parameters]

    def _agree_on(self, what: str, mine: list[str]) -> None:
        """Raises on every rank if one has something else, or does not come: what it trains has not changed."""
        every = gather_values(
            f"{what} in run {self._number}, reduction {self.reductions_begun}", mine, AGREEMENT_SECONDS
        )
        for rank, theirs in enumerate(every):
            if theirs != every[0]:
                only = sorted(set(theirs) ^ set(every[0])) or ["the order"]
                raise ConfigurationError(
                    f"Rank {rank} differs from rank 0 in {what}: {', '.join(only[:3])} ({len(only)} in all). "
                    "Every rank must train the same parameters with the same trainer."
                )

    def _peak_memory_gib(self) -> float:
        return torch.cuda.max_memory_allocated(self._device) / 2**30 if self._device.type == "cuda" else 0.0


def _raise_peers_error(lost: RuntimeError) -> None:
    """Raises what another rank published before the connection to it was lost, if any did."""
    published = find_errors()
    if published:
        rank, text = published[0]
        raise PeerError(f"Rank {rank} failed:\n{text}") from lost


def _close_run_of(module: nn.Module) -> None:
    """Ends a run that nobody has closed: its hooks would take the backwards of the next one for local ones."""
    known = _run_of.get(module)
    earlier = None if known is None else known()
    if earlier is not None:
        earlier.close()


def _raise_for_difference(sums: Sequence[float]) -> None:
    """Ranks that hold different weights before the same update have trained apart."""
    differing = [str(rank) for rank, value in enumerate(sums) if value != sums[0]]
    if differing:
        raise GradientSyncError(
            f"The weights of rank {', '.join(differing)} are not those of rank 0 since the last step. Something "
            "changed them on one rank alone, or a gradient was not that of all ranks: go back to the last checkpoint."
        )
