"""What a trainer is given: arguments bound by name, and means that stay means on several ranks.

What is refused, `test_factory.py` tries with the trainers themselves.
"""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from harness import ON_CPU, ROOT
from unsloth_accel import UnslothAcceleratedTrainerMixin
from unsloth_accel.trainers.arguments import bound_arguments


class Library:
    def __init__(self, model: object, ref_model: object = None, args: object = None, **options: object) -> None:
        pass


class Generated(Library):
    """As Unsloth writes it for GRPO."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)


class Above(UnslothAcceleratedTrainerMixin, Generated):
    """A user's class in front of ours: its own argument is gone when ours are called."""

    def __init__(self, path: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)


class Users(Library):
    def __init__(self, path: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)


class Below(UnslothAcceleratedTrainerMixin, Users):
    """A user's class behind ours: its own argument comes first."""


@pytest.mark.parametrize("cls", [Library, Generated, Above])
@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        (("model", "reference", "args"), {}),
        (("model", "reference"), {"args": "args"}),
        (("model",), {"args": "args", "ref_model": "reference"}),
        ((), {"args": "args", "ref_model": "reference", "model": "model"}),
    ],
    ids=lambda value: str(len(value)),
)
def test_an_argument_is_bound_by_position_as_by_name(cls: type, args: tuple[str, ...], kwargs: dict[str, str]) -> None:
    assert bound_arguments(cls, args, kwargs) == {"model": "model", "ref_model": "reference", "args": "args"}


def test_the_class_that_ours_call_takes_its_own_argument_first() -> None:
    given = bound_arguments(Below, ("path", "model", "reference", "args"), {"seed": 1})
    assert given == {"path": "path", "model": "model", "ref_model": "reference", "args": "args", "seed": 1}


def test_arguments_that_no_class_takes_are_left_to_the_call() -> None:
    assert bound_arguments(Library, (1, 2, 3, 4), {}) == {"model": 1, "ref_model": 2, "args": 3}


@pytest.fixture(scope="module")
def losses(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("losses")
    out = folder / "out.json"
    command = [sys.executable, str(ROOT / "tests" / "workers" / "mean_losses.py"), str(out)]
    environment = {**os.environ, **ON_CPU, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(out.read_text()))


HEADS = {
    "Llama, causal": True,
    "Llama, sequences": False,
    "Llama, tokens": False,
    "Llama with an adapter, sequences": False,
    "BERT, masked": False,
    "BERT, sequences": False,
    "ModernBERT, masked": True,
    "T5": False,
    "a model of the user": False,
    "a model in a model": True,
}


@pytest.mark.parametrize("head", HEADS)
def test_the_count_of_all_ranks_stays_with_the_losses_that_depend_on_it(head: str, losses: dict[str, Any]) -> None:
    assert losses[head]["depends"] == HEADS[head], "else this head is no example"
    assert losses[head]["averages"] == HEADS[head]


def test_a_users_loss_function_is_judged_by_what_it_does_with_the_count(losses: dict[str, Any]) -> None:
    assert losses["losses"] == {
        "mean": False,
        "divided": True,
        "handed on": True,
        "lambda": True,  # without a source of its own, nothing is changed
        "object": False,
    }


def test_only_what_transformers_would_multiply_is_put_right(losses: dict[str, Any]) -> None:
    multiplied = dict.fromkeys(("Logging", "Named", "Kept"), False)
    assert losses["trainers"] == {**multiplied, "Parallel": True, "Weighted": True}
    assert losses["smoothed"], "label smoothing divides by the count"
