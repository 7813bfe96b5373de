"""Groups of nearly equal cost, against the best there is by trying all."""

import itertools
import os
import subprocess
import sys
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import ROOT
from unsloth_accel.plan.balance import balance, longest_first


costs_and_groups = st.integers(1, 6).flatmap(
    lambda groups: st.tuples(
        st.lists(st.integers(0, 1 << 40), min_size=groups, max_size=40), st.just(groups), st.integers(1, 4)
    )
)
small = st.integers(1, 3).flatmap(
    lambda groups: st.tuples(st.lists(st.integers(1, 100), min_size=groups, max_size=7), st.just(groups))
)


def costliest(members: Iterable[list[int]], costs: list[int]) -> int:
    return max(sum(costs[row] for row in rows) for rows in members)


def best_of_all(costs: list[int], groups: int) -> int:
    """By trying every way to give each row to a group."""
    totals = []
    for choice in itertools.product(range(groups), repeat=len(costs)):
        if len(set(choice)) == groups:
            totals.append(max(sum(c for c, g in zip(costs, choice, strict=True) if g == group) for group in choice))
    return min(totals)


@pytest.mark.soak
@given(costs_and_groups)
def test_every_row_is_in_one_group_and_no_group_has_too_few(drawn: tuple[list[int], int, int]) -> None:
    costs, groups, least = drawn
    least = min(least, len(costs) // groups)
    for members in (longest_first(costs, groups, least), balance(np.array(costs), groups, least)):
        assert sorted(itertools.chain(*members)) == list(range(len(costs)))
        assert len(members) == groups
        assert min(map(len, members)) >= least


@pytest.mark.soak
@given(costs_and_groups)
def test_the_search_never_makes_it_worse(drawn: tuple[list[int], int, int]) -> None:
    costs, groups, least = drawn
    least = min(least, len(costs) // groups)
    found = costliest(balance(np.array(costs), groups, least), costs)
    assert found <= costliest(longest_first(costs, groups, least), costs)


@pytest.mark.soak
@given(small)
def test_the_costliest_group_is_within_grahams_bound_of_the_best(drawn: tuple[list[int], int]) -> None:
    costs, groups = drawn
    best = best_of_all(costs, groups)
    graham = costliest(longest_first(costs, groups), costs)
    assert 3 * groups * graham <= (4 * groups - 1) * best
    assert best <= costliest(balance(np.array(costs), groups), costs) <= graham


def test_the_search_finds_what_longest_first_misses() -> None:
    """Graham's own worst case for three machines: a few swaps away from the best there is."""
    costs = [5, 5, 4, 4, 3, 3, 3]
    assert costliest(longest_first(costs, 3), costs) == 11
    assert costliest(balance(np.array(costs), 3), costs) == best_of_all(costs, 3) == 9


def test_a_move_that_does_not_help_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even one that the next would undo."""
    monkeypatch.setattr("unsloth_accel.plan.balance.MOVES", 1)
    assert balance(np.array([10, 3, 3]), 2) == [[0], [1, 2]]


def test_ties_go_to_what_comes_first() -> None:
    assert longest_first([2, 2, 2, 2, 2], 2) == [[0, 2, 4], [1, 3]]


def test_rows_owed_to_a_group_are_kept_back() -> None:
    assert longest_first([9, 9, 1, 1, 1, 1], 2, least=3) == [[0, 2, 4], [1, 3, 5]]
    assert longest_first([100, 1, 1, 1], 2, least=2) == [[0, 3], [1, 2]]


PLANS = """
import numpy as np
from unsloth_accel.plan.balance import balance
for seed in range(20):
    costs = np.random.default_rng(seed).integers(1, 9, 400) * 1000  # many rows alike, so that many groups are
    print(balance(costs, groups=100, least=2))
"""


def test_the_groups_do_not_depend_on_the_cpu() -> None:
    """Numpy has other code for other instruction sets, which may order what is equal in another way."""
    found = np.show_config(mode="dicts")["SIMD Extensions"]["found"]
    plans = set()
    for disabled in ("", " ".join(found)):
        env = os.environ | {"NPY_DISABLE_CPU_FEATURES": disabled, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", PLANS], env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        plans.add(done.stdout)
    assert len(plans) == 1
