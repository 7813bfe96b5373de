"""Logs once, from the main process, what was decided and why."""

import logging
import sys

from .environment import is_main_process


_logger = logging.getLogger("unsloth_accel")


def log_once(message: str, *arguments: object) -> None:
    """Logs a decision on rank 0 under the logger `unsloth_accel`, visible unless the user configured logging."""
    _log(logging.INFO, message, arguments)


def log_debug(message: str, *arguments: object) -> None:
    """Logs on rank 0 what is of interest only when something is looked for: `enable_multi_gpu(debug=True)`."""
    _log(logging.DEBUG, message, arguments)


def _log(level: int, message: str, arguments: tuple[object, ...]) -> None:
    if not is_main_process():
        return
    if not _logger.hasHandlers():
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
        _logger.addHandler(handler)
    if _logger.level == logging.NOTSET:
        _logger.setLevel(logging.INFO)
    _logger.log(level, message, *arguments)
