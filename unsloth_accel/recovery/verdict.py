"""Whom a rank waits for in vain: judged from its own place and what it has heard of the others."""

from collections.abc import Mapping

from .heartbeat import LEFT, Heard, Place


BEAT_SECONDS = 2.0
# Others are listened to when this rank has not moved for so long.
LISTEN_SECONDS = 3 * BEAT_SECONDS
# A thread that lives misses a heartbeat or two on a busy machine, not four.
SILENCE_SECONDS = 4 * BEAT_SECONDS

_SILENT = (
    "Rank {} does not come: it has not been heard of for more than {:.0f} s, so it is dead, stopped or cut off. "
    "At its last heartbeat it was in {}."
)
_LEFT = "Rank {} has left `train()`, and this rank is still in it."


def find_missing(own: Place, heard: Mapping[int, Heard], now: float, stall_timeout: float) -> dict[int, str]:
    """The ranks that do not come, once this one has not moved for `stall_timeout`.

    - A rank without a heartbeat, whatever it was doing: a thread beats, which neither a save nor an evaluation stops.
    - A rank that has not moved either, has not come as far as this one, and is not at what may take long.
    - A rank that has left `train()`, where this one should have left, too.

    Args:
        own (`Place`): Where this rank is.
        heard (`Mapping[int, Heard]`): The others.
        now (`float`): The time, on the clock of `heard`.
        stall_timeout (`float`): In seconds.

    Returns:
        `dict[int, str]`: Why, by rank.
    """
    patience = stall_timeout - LISTEN_SECONDS  # since it was listened to
    missing = find_silent(heard, now, patience)
    for rank, (beat, _, moved_at) in heard.items():
        there = beat.place
        if rank in missing:
            continue
        if there.has_left:
            if not own.may_last:
                missing[rank] = _LEFT.format(rank)
        elif not there.may_last and there.position < own.position and now - moved_at >= patience:
            missing[rank] = f"Rank {rank} does not come: it has been in {there}, for more than {patience:.0f} s."
    return missing


def find_silent(heard: Mapping[int, Heard], now: float, seconds: float = SILENCE_SECONDS) -> dict[int, str]:
    """The ranks whose heartbeat has not been heard for so long, and that have not left; why, by rank."""
    silent = {rank: now - beat_at for rank, (_, beat_at, _) in heard.items() if now - beat_at >= seconds}
    return {
        rank: _SILENT.format(rank, since, heard[rank].beat.place)
        for rank, since in silent.items()
        if not heard[rank].beat.place.has_left
    }


def find_left(heard: Mapping[int, Heard]) -> dict[int, str]:
    """The ranks that have left without an error, as with `sys.exit()`, so that none of them tells why; by rank."""
    return {rank: _LEFT.format(rank) for rank, (beat, _, _) in heard.items() if beat.place.doing == LEFT}
