"""Property tests try ten examples for each draw that is asked for, the same ones in each run."""

import importlib

import pytest
from hypothesis import settings


def pytest_configure(config: pytest.Config) -> None:
    # No deadline and no saved examples: a busy machine fails no test, and a run depends on no other.
    settings.register_profile(
        "plan", deadline=None, derandomize=True, database=None, max_examples=10 * config.getoption("--draws")
    )
    settings.load_profile("plan")


@pytest.fixture(scope="session")
def model_libraries() -> None:
    """Imported with the first test that needs them, and not with its module: in other tiers Unsloth comes first.

    Before the environment of a test is compared, because they write to it.
    """
    importlib.import_module("peft")
    importlib.import_module("trl.trainer.sft_trainer")
