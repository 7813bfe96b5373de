"""Prints Unsloth's training banner once, with the true number of GPUs."""

import logging
import os
import re
from typing import Any

from .fix import Fix, Undo, Verdict


# Unsloth's training loop is transformers' text run in Unsloth's module, so its `logger` is either of the two.
LOGGERS = ("transformers.trainer", "unsloth_zoo.log")
_COUNT = re.compile(r"Num GPUs used = \d+")


def probe(model: Any) -> Verdict:
    """Every release so far counts the devices of one rank's model."""
    return Verdict(True, "the banner counts the devices of one rank's model, and every rank prints it")


def apply(model: Any) -> Undo:
    """Adds a filter to the loggers the banner may come from."""

    def once_and_true(record: logging.LogRecord) -> bool:
        if not _COUNT.search(str(record.msg)):
            return True
        record.msg = _COUNT.sub(f"Num GPUs used = {os.environ['WORLD_SIZE']}", str(record.msg))
        return os.environ["RANK"] == "0"

    loggers = [logging.getLogger(name) for name in LOGGERS]
    for logger in loggers:
        logger.addFilter(once_and_true)

    def undo() -> None:
        for logger in loggers:
            logger.removeFilter(once_and_true)

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
