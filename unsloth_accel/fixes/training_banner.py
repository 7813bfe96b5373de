"""Prints Unsloth's training banner once, with the true number of GPUs."""

import logging
import re
from typing import Any

from ..patching import Undo
from ..ranks.environment import is_main_process, world_size
from .fix import Fix, Verdict


# Unsloth's training loop is transformers' text run in Unsloth's module, so its `logger` is either of the two.
LOGGERS = ("transformers.trainer", "unsloth_zoo.log")
_COUNT = re.compile(r"Num GPUs used = \d+")


def probe(model: Any) -> Verdict:
    """Every release so far counts the devices of one rank's model."""
    return Verdict(True, "the banner counts the devices of one rank's model, and every rank prints it")


def apply(model: Any) -> Undo:
    """Adds a filter to the loggers the banner may come from."""

    def keep_record(record: logging.LogRecord) -> bool:
        if not _COUNT.search(str(record.msg)):
            return True
        record.msg = _COUNT.sub(f"Num GPUs used = {world_size()}", str(record.msg))
        return is_main_process()

    loggers = [logging.getLogger(name) for name in LOGGERS]
    for logger in loggers:
        logger.addFilter(keep_record)

    def undo() -> None:
        for logger in loggers:
            logger.removeFilter(keep_record)

    return undo


FIX = Fix(
    name="training_banner",
    symptom='Unsloth prints its banner N times and says "Num GPUs used = 1" although all GPUs train.',
    remedy="One banner, with the number of ranks.",
    upstream="https://github.com/unslothai/unsloth/issues/2435",
    until=None,
    probe=probe,
    apply=apply,
)
