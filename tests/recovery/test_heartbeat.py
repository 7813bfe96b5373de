"""What a rank notes of where it is."""

from unsloth_accel.recovery.heartbeat import Beat, Heartbeats, Place, Progress


def test_every_point_and_every_reduction_is_further_than_the_one_before() -> None:
    reductions = 0
    progress = Progress(lambda: reductions)
    places = [progress.place()]
    progress.enter("computing", 1)
    places.append(progress.place())
    reductions += 1
    places.append(progress.place())
    progress.enter("at the end of the step", 1)
    places.append(progress.place())
    assert [place.position for place in places] == [0, 1, 2, 3]
    assert [place.doing for place in places[1::2]] == ["computing", "at the end of the step"]
    assert places[2].doing.startswith("averaging the gradients")
    assert str(places[1]) == "step 1, computing"


def test_a_micro_batch_is_a_sign_of_life_and_no_point_of_all_ranks() -> None:
    progress = Progress(lambda: 0)
    progress.enter("computing", 1)
    before = progress.place()
    progress.move()
    after = progress.place()
    assert after.position == before.position
    assert after.moves > before.moves


def test_what_is_heard_is_timed_by_its_change() -> None:
    heartbeats, place = Heartbeats("test"), Place(1, 1, 1, "computing", False)
    for now, beat in [(0.0, Beat(1, place)), (2.0, Beat(2, place)), (4.0, Beat(2, place))]:
        heartbeats._take(1, beat, now)
    assert heartbeats.heard[1][1:] == (2.0, 0.0), "the second heartbeat, at the place of the first"
    heartbeats._take(1, Beat(3, place._replace(moves=2)), 6.0)
    assert heartbeats.heard[1][1:] == (6.0, 6.0)
