"""Whom a rank waits for in vain, judged from places and times."""

from unsloth_accel.recovery.heartbeat import FAILED, LEFT, Beat, Heard, Place
from unsloth_accel.recovery.verdict import LISTEN_SECONDS, SILENCE_SECONDS, find_left, find_missing, find_silent


LIMIT = 110.0
OWN = Place(9, 9, 3, "averaging", False)


def heard(place: Place, *, silent: float = 1.0, still: float = LIMIT) -> dict[int, Heard]:
    """One other rank at time 1000, last heard and last moved so many seconds ago."""
    return {1: Heard(Beat(1, place), 1000 - silent, 1000 - still)}


def missing(own: Place, others: dict[int, Heard]) -> dict[int, str]:
    return find_missing(own, others, 1000.0, LIMIT)


def test_a_rank_that_has_not_come_as_far_and_does_not_move_is_missing() -> None:
    behind = OWN._replace(position=8, doing="computing")
    assert missing(OWN, heard(behind)) == {
        1: "Rank 1 does not come: it has been in step 3, computing, for more than 104 s."
    }


def test_a_rank_that_moves_is_not_missing_however_slow_it_is() -> None:
    assert missing(OWN, heard(OWN._replace(position=8), still=LIMIT - LISTEN_SECONDS - 1)) == {}


def test_a_rank_at_the_same_point_or_further_waits_as_well() -> None:
    assert missing(OWN, heard(OWN)) == {}
    assert missing(OWN, heard(OWN._replace(position=10))) == {}


def test_a_save_or_an_evaluation_may_last() -> None:
    assert missing(OWN, heard(OWN._replace(position=8, may_last=True))) == {}


def test_a_rank_that_is_silent_is_missing_wherever_it_was() -> None:
    for place in (OWN, OWN._replace(position=10), OWN._replace(position=8, may_last=True)):
        for own in (OWN, OWN._replace(may_last=True)):
            (why,) = missing(own, heard(place, silent=LIMIT)).values()
            assert "has not been heard of for more than 110 s, so it is dead, stopped or cut off" in why
            assert str(place) in why


def test_a_rank_that_has_left_is_missed_by_one_that_should_have_left_too() -> None:
    left = heard(OWN._replace(doing=LEFT), silent=LIMIT)
    assert missing(OWN, left) == {1: "Rank 1 has left `train()`, and this rank is still in it."}
    assert missing(OWN._replace(may_last=True), left) == {}, "it may be writing the last checkpoint"
    assert find_silent(left, 1000.0) == {}, "nobody expects heartbeats of it"


def test_a_rank_that_has_left_without_an_error_is_named_at_once() -> None:
    assert find_left(heard(OWN)) == {}
    assert find_left(heard(OWN._replace(doing=LEFT))) == {
        1: "Rank 1 has left `train()`, and this rank is still in it."
    }
    failed = heard(OWN._replace(doing=FAILED), silent=LIMIT)
    assert find_left(failed) == {}, "it tells why itself, or still asks whom it has lost"
    assert find_silent(failed, 1000.0) == {}


def test_a_missed_heartbeat_is_not_silence() -> None:
    assert find_silent(heard(OWN, silent=SILENCE_SECONDS - 0.1), 1000.0) == {}
    assert find_silent(heard(OWN, silent=SILENCE_SECONDS), 1000.0).keys() == {1}
