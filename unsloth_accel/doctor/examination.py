"""All checks, in the order in which one needs the other."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial

from .all_reduce import check_all_reduce
from .compatibility import check_attention, check_fixes
from .finding import Finding
from .gpus import check_gpus, check_links
from .imports import check_imports
from .launch_config import check_launch_config
from .storage import check_compiled_cache, check_disk, check_shared_memory
from .survey import take_survey
from .versions import check_python, check_versions


def examine(launch: bool) -> Iterator[Finding]:
    """Looks at this machine and this installation.

    Args:
        launch (`bool`): Whether to start ranks, which takes half a minute.

    Yields:
        `Finding`: As soon as it is there.
    """
    for check in (check_python, check_versions, check_disk, check_shared_memory, check_compiled_cache):
        yield from _run(check)
    yield from _run(partial(check_imported, launch))


def check_imported(launch: bool) -> Iterator[Finding]:
    """What can only be asked where everything is imported.

    Args:
        launch (`bool`): Whether to start ranks.
    """
    survey = take_survey()
    for ask in (check_imports, check_gpus, check_links, check_launch_config, check_attention, check_fixes):
        yield from _run(partial(ask, survey))
    if launch:
        yield from _run(partial(check_all_reduce, survey))
    else:
        yield Finding("all-reduce", "SKIP", "starts ranks", "unsloth-accel doctor --launch")


def _run(check: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """The findings of a check; that it cannot run is one, too, because the doctor is for what is broken."""
    try:
        yield from check()
    except Exception as error:
        name = check.func.__name__ if isinstance(check, partial) else getattr(check, "__name__", "check")
        said = " ".join(str(error).split())
        yield Finding(name.removeprefix("check_"), "FAIL", f"{type(error).__name__}: {said}", _mend(error))


def _mend(error: Exception) -> str:
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    return f"pip install {missing}" if missing else "pip install --upgrade unsloth-accel"
