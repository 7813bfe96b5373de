"""Ranks that hold different things are told so before they train on: which rank, and what."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

from ..errors import ConfigurationError, GradientSyncError
from ..ranks.agreement import gather_values
from ..ranks.environment import is_distributed


# What ranks compare, in this order, and what to do where it differs.
_ADVICE = {
    "versions": "Install the same versions for all ranks.",
    "arguments": "Start every rank with the same arguments.",
    "data": "Give every rank all rows, in the same order: the trainer deals them to the ranks.",
    "sampler": "Set `data_seed` in the trainer's arguments: without it, the order of rows follows torch's own seed.",
    "trained weights": "Something changed them on one rank alone: go back to the last checkpoint.",
    "optimizer state": "Something changed it on one rank alone: go back to the last checkpoint.",
}
_TRAINED = ("trained weights", "optimizer state")
_SHOWN = 3

# The ranks come to each agreement together, so they count alike.
_agreements = count()


def require_agreement(moment: str, held: Mapping[str, Mapping[str, Any]], timeout: float) -> None:
    """Raises the same error on all ranks if one of them holds something else.

    Digests are compared through the launcher's store, outside any collective; only where they differ are the values.

    Args:
        moment (`str`): When this is, for the error; the same on all ranks.
        held (`Mapping[str, Mapping[str, Any]]`): What this rank holds, as JSON can hold it: `versions`, `arguments`,
            `data`, `sampler`, `trained weights` or `optimizer state`, and in each of them values by name.
        timeout (`float`): Seconds to wait for each rank.

    Raises:
        ConfigurationError: If a rank was started with something else.
        GradientSyncError: If the ranks have trained apart.
        PeerError: If a rank does not come.
    """
    if not is_distributed():
        return
    key = f"{moment} (agreement {next(_agreements)})"
    of_ranks = gather_values(key, {what: _digest(values) for what, values in held.items()}, timeout)
    for what in _ADVICE:
        if len({digests.get(what) for digests in of_ranks}) > 1:
            every = gather_values(f"{what} at {key}", held.get(what, {}), timeout)
            error = GradientSyncError if what in _TRAINED else ConfigurationError
            raise error(f"The ranks differ in {what}, at {moment}: {_describe(what, every)} {_ADVICE[what]}")


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _describe(what: str, every: Sequence[Mapping[str, Any]]) -> str:
    """Which ranks differ from most others, or from rank 0 where there is no majority, and in what."""
    usual, _ = Counter(map(_digest, every)).most_common(1)[0]
    most = next(values for values in every if _digest(values) == usual)
    odd = [rank for rank, values in enumerate(every) if _digest(values) != usual]
    theirs = every[odd[0]]
    names = [name for name in {**most, **theirs} if theirs.get(name) != most.get(name)]
    shown = names if what in _TRAINED else [f"`{n}` is {theirs.get(n)!r} there, else {most.get(n)!r}" for n in names]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"rank {', '.join(map(str, odd))}: {', '.join(shown[:_SHOWN])}{more}."
