"""The door to Unsloth, and the versions that really run.

Unsloth rebinds classes of trl, transformers and peft when it is imported. This is the one place of the package that
imports it, so that the moment is chosen and the order is checked.
"""

import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

from packaging.version import Version

from .errors import ConfigurationError, VersionError
from .ranks.environment import is_main_process, local_world_size
from .ranks.restarts import begin_attempt


# What the tests run on. `tests/test_imports.py` compares them with setup.cfg.
FLOORS = {
    "unsloth": "2026.10.9",
    "unsloth_zoo": "2026.10.9",
    "torch": "2.11",
    "transformers": "5.17",
    "trl": "1.15",
    "accelerate": "1.15",
    "peft": "0.21",
}


def check_versions() -> None:
    """Raises if a package that must be there is missing or below its floor.

    Raises:
        VersionError: Naming each such package and the one command that mends all of them.
    """
    faults = []
    for package, floor in FLOORS.items():
        try:
            installed = version(package)
        except PackageNotFoundError:
            faults.append((f"{package} is not installed", package, floor))
            continue
        if Version(installed).release < Version(floor).release:
            faults.append((f"{package} is {installed}", package, floor))
    if faults:
        raise VersionError(
            f"unsloth_accel cannot run here: {'; '.join(f'{what}, needs >= {floor}' for what, _, floor in faults)}. "
            f"Run: pip install --upgrade {' '.join(repr(f'{package}>={floor}') for _, package, floor in faults)}"
        )


def cpu_was_asked_for() -> bool:
    """Whether the launcher was told to leave the GPUs alone."""
    return os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("1", "true", "yes")


def check_ranks_fit_gpus() -> None:
    """Raises if the launcher started more ranks on this node than it has GPUs.

    Raises:
        ConfigurationError: Naming both counts. Without it each surplus rank dies with "invalid device ordinal".
    """
    import torch

    gpus = torch.cuda.device_count()
    if gpus and not cpu_was_asked_for() and local_world_size() > gpus:
        raise ConfigurationError(
            f"`--num_processes` started {local_world_size()} ranks on this machine, but it has {gpus} visible GPUs. "
            f"Launch at most {gpus} per machine, or make more GPUs visible with CUDA_VISIBLE_DEVICES."
        )


@contextmanager
def _only_rank_0_speaks() -> Iterator[None]:
    """Unsloth and what it imports greet and warn on every rank; what the others would say is on rank 0, too."""
    if is_main_process():
        yield
        return
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)


def load_unsloth() -> ModuleType:
    """Imports `unsloth`, which patches trl, transformers and peft, after checking versions and ranks.

    Returns:
        `ModuleType`: The module `unsloth`.

    Raises:
        VersionError: If an installed package is missing or below its floor.
        ConfigurationError: If more ranks than GPUs were started on this node.
    """
    begin_attempt()
    check_versions()  # also where the script has imported Unsloth itself, as most do in their first line
    if "unsloth" not in sys.modules:
        check_ranks_fit_gpus()
    with _only_rank_0_speaks():
        import unsloth

    module: ModuleType = unsloth
    return module
