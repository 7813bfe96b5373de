"""The lines of the user's code tell a call that one rank makes from one that all make."""

import cProfile
import re

from unsloth_accel.ranks.call_site import call_site


def here() -> str:
    return call_site()


def test_the_whole_way_counts() -> None:
    first = here()
    second = here()
    again = {here() for _ in range(2)}
    assert first != second, "the same function, called at two lines"
    assert first.split(" < ")[0] == second.split(" < ")[0]
    assert len(again) == 1, "a loop comes back to the same line"
    assert re.match(r"test_call_site.py:\d+ < test_call_site.py:\d+ < ", first), "the innermost line comes first"


def test_what_a_profiler_adds_on_one_rank_does_not_count() -> None:
    assert "cProfile.py" not in cProfile.Profile().runcall(here)
