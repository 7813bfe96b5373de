"""Property tests try ten examples for each draw that is asked for, the same ones in each run."""

import pytest
from hypothesis import settings


def pytest_configure(config: pytest.Config) -> None:
    # No deadline and no saved examples: a busy machine fails no test, and a run depends on no other.
    settings.register_profile(
        "plan", deadline=None, derandomize=True, database=None, max_examples=10 * config.getoption("--draws")
    )
    settings.load_profile("plan")
