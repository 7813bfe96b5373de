"""Where in the user's code a call was made."""

import inspect
import sys
from pathlib import Path
from traceback import walk_stack
from types import FrameType


_INSTALLED = {"site-packages", "dist-packages"}


def call_site() -> str:
    """Names the lines of the user's code that led here, innermost first.

    It is the whole way, not its last line: a function of the user's that saves may be called by all ranks in one
    place and by one rank in another. What is installed does not count, as a tracker or a profiler that one rank alone
    uses puts its own lines between. Files go by name, because their folders may differ from node to node.

    Returns:
        `str`: As "train.py:12 < train.py:40"; empty where no code is the user's.
    """
    users = [(frame, line) for frame, line in walk_stack(inspect.currentframe()) if _is_users(frame)]
    return " < ".join(f"{Path(frame.f_code.co_filename).name}:{line}" for frame, line in users)


def _is_users(frame: FrameType) -> bool:
    package = str(frame.f_globals.get("__name__")).partition(".")[0]
    # Wherever they lie: Unsloth, this package, and what Unsloth generates (`UnslothSFTTrainer`).
    if package in sys.stdlib_module_names or package.lower().startswith("unsloth"):
        return False
    return package in _started() or _INSTALLED.isdisjoint(Path(frame.f_code.co_filename).parts)


def _started() -> tuple[str, ...]:
    """The script, and the package that it belongs to if it was started with `-m`: the user's, even if installed."""
    spec = sys.modules["__main__"].__spec__
    return ("__main__", spec.name.partition(".")[0]) if spec is not None else ("__main__",)
