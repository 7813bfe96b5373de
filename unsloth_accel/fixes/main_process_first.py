"""Accelerate's `main_process_first`: no rank is left waiting in a collective for the first one."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from ..data.prepare_once import is_preparing
from ..patching import Undo, replace_attribute, undo_all
from .fix import Fix, Verdict


def probe(model: Any) -> Verdict:
    """Every release of Accelerate so far leaves the window without a barrier when the block raises."""
    return Verdict(True, "a first rank whose block raises never reaches the barrier that the other ranks wait in")


def apply(model: Any) -> Undo:
    """Replaces both windows of `PartialState`; `Accelerator` and TRL use them."""
    from accelerate import PartialState

    def main_process_first(self: PartialState) -> AbstractContextManager[None]:
        return _goes_first(self, self.is_main_process)

    def local_main_process_first(self: PartialState) -> AbstractContextManager[None]:
        return _goes_first(self, self.is_local_main_process)

    replacements = (main_process_first, local_main_process_first)
    undos = [replace_attribute(PartialState, function.__name__, function) for function in replacements]
    return lambda: undo_all(undos)


@contextmanager
def _goes_first(state: Any, is_main: bool) -> Iterator[None]:
    if is_preparing():
        # There the ranks wait outside any collective: rank 0 may take longer than the process group's timeout.
        yield
        return
    if not is_main:
        state.wait_for_everyone()
    try:
        yield
    finally:
        if is_main:
            state.wait_for_everyone()


FIX = Fix(
    name="main_process_first",
    symptom=(
        "An error on rank 0 while data are prepared (disk full, a dead worker process) is swallowed or shown, and the "
        "other ranks hang for ever."
    ),
    remedy=(
        "The first rank reaches the barrier also when its block raises, so the others go on. While our trainers "
        "prepare data, which orders the ranks by itself, there is no barrier."
    ),
    upstream="https://github.com/huggingface/accelerate/blob/main/src/accelerate/state.py",
    until=None,
    probe=probe,
    apply=apply,
)
