"""What one rank is asked to do at the end of a step, by a signal, a file or a callback, all do at the same step."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Any

from torch import Tensor

from ..ddp.reports import Action, RankReport
from ..ranks.logging import log_once
from .signals import STOP_SIGNALS, StopSignals
from .stop_file import StopFile
from .wishes import WishBoard


# The switches of transformers' TrainerControl: what is done at once, and what ends a loop.
_DONE_AT_ONCE = ("should_log", "should_evaluate", "should_save")
_STOPS = ("should_epoch_stop", "should_training_stop")
_SWITCHES = (*_DONE_AT_ONCE, *_STOPS)
# What asks from outside for a stop, and how all ranks then leave: as a shell names a signal. After the file with 0,
# because a launcher takes anything else for a failure, and with `--max_restarts` would start what was to stop anew.
_EXIT_CODES = {**{number.name: 128 + number for number in STOP_SIGNALS}, "stop_file": 0}


class AgreedStop:
    """Takes what `trainer.control` says at the end of a step as this rank's wish, and leaves on what all ranks do.

    - What transformers' `DefaultFlowCallback` sets follows from the step number and the arguments, so it is the same
      on all ranks and done at once.
    - What else is wished is left in the store, and a rank that wishes something waits for the others to come to the
      same point. What all ranks wish is done at once, as on one rank.
    - What only some wish is withheld, travels with the report of their next step, and is done by all: at the end of
      that step if it logs, saves or evaluates, else at the end of the one after, when every rank has heard of it.
    - At the end of the last step all ranks wait for each other, and what any of them wishes is done.

    A stop signal or the stop file is such a wish. It saves, stops, and leaves out evaluation, since who sends a signal
    does not wait long. While entered, they are noted; at the end all ranks leave with `SystemExit(128 + signal
    number)`, or `SystemExit(0)` after the file.

    Args:
        trainer (`transformers.Trainer`): Whose `control` it is.
        on_stop (`Callable[[str], None]`): Called on every rank when all agree to stop before the end, with the reason.
    """

    columns: tuple[str, ...] = (*_SWITCHES, *_EXIT_CODES)

    def __init__(self, trainer: Any, on_stop: Callable[[str], None]) -> None:
        self._trainer, self._on_stop = trainer, on_stop
        self._signals, self._file = StopSignals(), StopFile(str(trainer.args.output_dir))
        self._board = WishBoard()
        self._withheld: set[str] = set()
        self._sent: set[str] = set()
        self._reports = 0
        self._heard: list[tuple[int, set[str]]] = []  # by the number of the report
        self._told: dict[str, str] = {}  # on which ranks it came first
        self._standing: set[str] = set()  # the stops that are agreed on and still set
        self._last_step: int | None = None
        self._stopped_by: str | None = None

    def __enter__(self) -> "AgreedStop":
        self._file.__enter__()
        self._signals.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._signals.__exit__(kind, error, traceback)
        self._file.__exit__(kind, error, traceback)
        if kind is None and self._stopped_by is not None:
            raise SystemExit(_EXIT_CODES[self._stopped_by])
        if kind is None and self._signals.received is not None:  # it came too late for the last step
            self._signals.pass_on(self._signals.received)

    @contextmanager
    def keeping_checkpoint(self) -> Iterator[None]:
        """At the end of training: with `save_total_limit=1` transformers removes all checkpoints but the best there.

        After a stop from outside, the run is to go on from the newest.
        """
        given = self._trainer.args
        if self._stopped_by is not None:
            self._trainer.args = copy.copy(given)
            self._trainer.args.save_total_limit, self._trainer.args.load_best_model_at_end = None, False
        try:
            yield
        finally:
            self._trainer.args = given

    # The member of the run

    def report(self) -> Mapping[str, float | Tensor]:
        """This rank's wishes that not all ranks know of yet."""
        self._reports += 1
        self._sent = self._waiting()
        return dict.fromkeys(self._sent, 1.0)

    def decide(self, ranks: Sequence[RankReport]) -> Action | None:
        """Every rank notes what any rank wishes."""
        wishes = {name: [rank for rank, report in enumerate(ranks) if report.values[name]] for name in self.columns}
        heard = {name: by for name, by in wishes.items() if by}
        return partial(self._hear, heard) if heard else None

    def _hear(self, heard: Mapping[str, Sequence[int]]) -> None:
        self._withheld -= self._sent
        self._heard.append((self._reports, set(heard)))
        for name in heard.keys() - self._told.keys():
            self._told[name] = ", ".join(map(str, heard[name]))
            log_once("%s came on rank %s: all ranks do it at the same step", name, self._told[name])

    def _waiting(self) -> set[str]:
        received = self._signals.received
        signals = set() if received is None else {received.name}
        return self._withheld | signals | ({"stop_file"} if self._file.seen else set())

    # The end of a step, and of an epoch

    def act_together(self, act: Callable[[], None], settle: Callable[[], None]) -> None:
        """Lets all ranks agree on what `act` does, and again on what a callback wished in it, as early stopping does.

        Args:
            act (`Callable`): Logs, evaluates and saves as `trainer.control` says.
            settle (`Callable`): Takes in what the ranks said in the last reduction.
        """
        at_epoch_end = self._last_step == self._trainer.state.global_step
        self._last_step = self._trainer.state.global_step
        if not at_epoch_end:
            self._standing = set()
        default = self._default_wishes(at_epoch_end)
        if default:
            settle()
        acts = self._agree(default, has_settled=bool(default))
        if acts:
            settle()
        saves = self._trainer.control.should_save
        act()
        if acts and self._agree(set(), has_settled=True) and self._stopped_by is not None and not saves:
            act()  # it came meanwhile, and no step follows that could save

    def _agree(self, default: set[str], *, has_settled: bool) -> bool:
        """Sets `control` as all ranks agree; returns whether they log, evaluate or save."""
        wished = {name for name in _SWITCHES if getattr(self._trainer.control, name)}
        agreed = (wished & default) | self._take_heard(has_settled=has_settled)
        own = wished - agreed - self._standing
        if not self._is_last(agreed):
            agreed |= self._take_unanimous(own)
        if self._is_last(agreed):
            agreed |= self._take_all(own)
        if "should_training_stop" in agreed - default:
            self._tell_stop("should_training_stop")
        return self._set(agreed)

    def _tell_stop(self, name: str) -> None:
        """The ranks are known where not all have wished it at once."""
        self._on_stop(f"{name} on rank {self._told[name]}" if name in self._told else name)

    def _is_last(self, agreed: set[str]) -> bool:
        return "should_training_stop" in agreed | self._standing

    def _take_heard(self, *, has_settled: bool) -> set[str]:
        """What every rank has heard by now: not what this rank alone may have, because it called `log`."""
        heard = [names for number, names in self._heard if has_settled or number < self._reports]
        del self._heard[: len(heard)]
        return set[str]().union(*heard)

    def _take_unanimous(self, own: set[str]) -> set[str]:
        """What all ranks wish here; what they do not is withheld."""
        self._board.leave(own)
        if own and all(wishes == own for wishes in self._board.read()):
            return set(own)
        self._withheld |= own
        return set()

    def _take_all(self, own: set[str]) -> set[str]:
        """What any rank wishes, here or before: no step follows whose report could carry it."""
        self._board.leave(own.union(self._waiting(), *(names for _, names in self._heard)))
        self._withheld, self._heard = set(), []
        return set[str]().union(*self._board.read())

    def _set(self, agreed: set[str]) -> bool:
        switches = self._as_told_from_outside(agreed)
        self._standing |= switches.intersection(_STOPS)
        for name in _SWITCHES:
            setattr(self._trainer.control, name, name in switches | self._standing)
        return not switches.isdisjoint(_DONE_AT_ONCE)

    def _as_told_from_outside(self, agreed: set[str]) -> set[str]:
        if self._stopped_by is not None:
            return set()  # what it asked for is done
        arrived = [name for name in _EXIT_CODES if name in agreed]
        if not arrived:
            return agreed
        self._stopped_by = arrived[0]
        self._tell_stop(arrived[0])
        step, code = self._trainer.state.global_step, _EXIT_CODES[arrived[0]]
        log_once("%s: all ranks save step %d and leave with exit code %d", arrived[0], step, code)
        return {"should_save", "should_training_stop"} | agreed.intersection({"should_log"})

    def _default_wishes(self, at_epoch_end: bool) -> set[str]:
        """What transformers' own flow sets here, on every rank alike."""
        from transformers.trainer_callback import DefaultFlowCallback, TrainerControl

        flow = DefaultFlowCallback()
        event = flow.on_epoch_end if at_epoch_end else flow.on_step_end
        control = event(self._trainer.args, self._trainer.state, TrainerControl())
        return {name for name in _SWITCHES if getattr(control, name)}
