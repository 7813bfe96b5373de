"""Where in the user's code a call was made."""

import inspect
import sys
from pathlib import Path
from traceback import walk_stack


# Their frames say nothing about where the user is, and may differ: a debugger adds its own on one rank alone.
_LIBRARIES = {"accelerate", "datasets", "peft", "torch", "transformers", "trl", *sys.stdlib_module_names}


def call_site() -> str:
    """Names the lines of the user's code that led here, innermost first.

    It is the whole way, not its last line: a function of the user's that saves may be called by all ranks in one
    place and by one rank in another. Files go by name, because their folders may differ from node to node.

    Returns:
        `str`: As "train.py:12 < train.py:40"; empty where no code is the user's.
    """
    frames = walk_stack(inspect.currentframe())
    users = [(frame.f_code.co_filename, line) for frame, line in frames if not _is_library(frame.f_globals)]
    return " < ".join(f"{Path(file).name}:{line}" for file, line in users)


def _is_library(module: dict[str, object]) -> bool:
    package = str(module.get("__name__")).partition(".")[0]
    # Unsloth, this package and what Unsloth generates: `unsloth_zoo`, `unsloth_compiled_cache`, `UnslothSFTTrainer`.
    return package in _LIBRARIES or package.lower().startswith("unsloth")
