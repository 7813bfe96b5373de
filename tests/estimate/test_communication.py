"""The ring, and what of it a step sees."""

import pytest

from unsloth_accel.estimate.communication import Links, all_reduce_ms, exposed_ms


MIB = 2**20


def test_a_ring_sends_twice_the_bytes_but_one_share() -> None:
    links = Links(host=100.0)
    size = 1000 * 10**6
    sent = all_reduce_ms(size, 8, links) - all_reduce_ms(0, 8, links)
    assert sent == pytest.approx(2 * 7 / 8 * size / 100e9 * 1000)
    assert all_reduce_ms(0, 8, links) == pytest.approx((8.4 + 14 * 3.4) / 1000), "a call and 14 steps"
    assert all_reduce_ms(size, 1, links) == 0.0


def test_beyond_a_host_the_network_decides_and_its_steps_take_longer() -> None:
    links = Links(host=300.0, network=12.5)
    assert all_reduce_ms(0, 16, links) == pytest.approx((8.4 + 28 * 3.4 + 2 * 9.6) / 1000)
    sent = all_reduce_ms(10**9, 16, links) - all_reduce_ms(0, 16, links)
    assert sent == pytest.approx(2 * 15 / 16 * 10**9 / 12.5e9 * 1000)


def test_deferred_gradients_are_all_seen_in_chunks_of_64_mib() -> None:
    links = Links()
    one = exposed_ms(64 * MIB, 2, links, compute_ms=1000)
    assert one == pytest.approx(all_reduce_ms(64 * MIB, 2, links))
    assert exposed_ms(128 * MIB, 2, links, compute_ms=1000) == pytest.approx(2 * one)
    assert exposed_ms(128 * MIB, 1, links, compute_ms=1000) == 0.0


def test_overlapped_gradients_hide_behind_backward_but_for_the_last_bucket() -> None:
    links, gradients = Links(host=300.0), 4096 * MIB
    hidden = exposed_ms(gradients, 2, links, compute_ms=1000)
    assert hidden == pytest.approx(all_reduce_ms(25 * MIB, 2, links))
    seen = exposed_ms(gradients, 2, Links(host=1.0), compute_ms=1000)
    assert seen == pytest.approx(exposed_ms(gradients, 2, Links(host=1.0), compute_ms=0) - 500)
