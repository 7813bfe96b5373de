"""What the launcher tells a process about its ranks: the one place that reads RANK, WORLD_SIZE and their kin."""

import os

from ..errors import ConfigurationError


def was_launched() -> bool:
    """Whether a launcher (`accelerate launch`, `torchrun`) started this process as one of its ranks."""
    return "LOCAL_RANK" in os.environ


def is_distributed() -> bool:
    """Whether the launcher started more than one rank, known before any process group exists."""
    return world_size() > 1


def is_main_process() -> bool:
    """Whether this is rank 0, known before any process group exists."""
    return os.environ.get("RANK", "0") == "0"


def world_size() -> int:
    """The number of ranks; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This process among all ranks; 0 without a launcher."""
    return _from_launcher("RANK", 0)


def local_rank() -> int:
    """This process among those of its machine; 0 without a launcher."""
    return _from_launcher("LOCAL_RANK", 0)


def local_world_size() -> int:
    """The number of ranks on this machine; 1 where the launcher does not say."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def store_address() -> tuple[str, int]:
    """Host and port of the key-value store through which the ranks find each other."""
    return os.environ.get("MASTER_ADDR", "127.0.0.1"), _from_launcher("MASTER_PORT")


def agent_hosts_store() -> bool:
    """Whether torchrun's agent hosts the store, also under `accelerate launch`; else rank 0 does.

    https://docs.pytorch.org/docs/stable/elastic/run.html
    """
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def restart_count() -> int:
    """How often torchrun has started the ranks anew after a failure."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def max_restarts() -> int:
    """How often torchrun would start the ranks anew after a failure."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))


def _from_launcher(variable: str, alone: int | None = None) -> int:
    """The variable's value; `alone` for a process that is the only rank."""
    if variable in os.environ:
        return int(os.environ[variable])
    if alone is not None and not is_distributed():
        return alone
    raise ConfigurationError(
        f"WORLD_SIZE is {world_size()} but {variable} is not set. Start the ranks with `accelerate launch` or "
        "`torchrun`, or set RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT."
    )
