"""The state of random numbers that a rank goes on with, where another number of ranks wrote the checkpoint."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor


if TYPE_CHECKING:
    from transformers import Trainer


def load_random_state(trainer: "Trainer", checkpoint: Path, load_own: Callable[[], None]) -> None:
    """Restores Python's, NumPy's and torch's random numbers; called on all ranks.

    Each rank goes on with the numbers of the rank of its number, which on one rank lie in a file of another name. A
    rank that is not among those that wrote draws anew from a seed that follows from `seed`, the step and the rank;
    transformers would leave it with whatever its generators are at.

    Args:
        trainer (`transformers.Trainer`): One that trains.
        checkpoint (`Path`): The folder.
        load_own (`Callable`): transformers' own way.
    """
    args, rank = trainer.args, trainer.args.process_index
    names = ["rng_state.pth"] if args.world_size == 1 else [f"rng_state_{rank}.pth"]
    if rank == 0:
        names.append("rng_state_0.pth" if args.world_size == 1 else "rng_state.pth")
    saved = [name for name in names if (checkpoint / name).is_file()]
    if saved[:1] == names[:1]:
        load_own()
    elif saved:
        _restore(checkpoint / saved[0], args.device)
    elif any(checkpoint.glob("rng_state*.pth")):  # else only weights were saved
        _draw_anew(args.seed, trainer.state.global_step, rank)


def _restore(file: Path, device: torch.device) -> None:
    import numpy as np
    from transformers.trainer_pt_utils import safe_globals

    with safe_globals():
        state = torch.load(file, weights_only=True)
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(_of_device(state["cuda"], device), device)


def _of_device(states: Any, device: torch.device) -> Tensor:
    """One rank saves the state of its GPU, several save those of all GPUs of the machine."""
    state: Tensor = states if isinstance(states, Tensor) else states[(device.index or 0) % len(states)]
    return state


def _draw_anew(seed: int, step: int, rank: int) -> None:
    """NumPy's way to get independent streams, https://numpy.org/doc/stable/reference/random/parallel.html"""
    import numpy as np
    from transformers import set_seed

    set_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0]))
