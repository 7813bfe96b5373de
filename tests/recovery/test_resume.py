"""How many rows a step has after a resume, and which choices keep them."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import pytest

from unsloth_accel.errors import ConfigurationError
from unsloth_accel.recovery.resume import keep_global_batch


@dataclass
class Arguments:
    """Those of transformers' TrainingArguments that count here; their `world_size` needs ranks."""

    train_batch_size: int
    gradient_accumulation_steps: int
    world_size: int


def kept(arguments: Any, rows: int, automatic: bool = True) -> Any:
    return keep_global_batch(cast("Any", arguments), "checkpoint-4", {"global_batch": rows}, automatic=automatic)


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_step_keeps_its_rows_on_any_ranks(size: int, ranks: int) -> None:
    arguments = Arguments(size, 3, ranks)
    found = kept(arguments, 32)
    assert found.train_batch_size * found.gradient_accumulation_steps * ranks == 32
    assert arguments.gradient_accumulation_steps == 3, "those of the user stay"


def test_what_fits_already_is_left_alone() -> None:
    arguments = Arguments(2, 2, 2)
    assert kept(arguments, 8, automatic=False) is arguments


@pytest.mark.parametrize(
    ("arguments", "rows", "choices"),
    [
        (
            Arguments(4, 1, 4),
            8,
            "4 x 1 x 4 = 16, but checkpoint-4 was written with 8. With 4 ranks 1 x 2, 2 x 1 keep",
        ),
        (Arguments(2, 1, 3), 8, "No batch size on 3 ranks gives that; 1, 2, 4, 8 ranks can"),
    ],
)
def test_what_cannot_fit_is_an_error_with_the_choices_that_do(arguments: Arguments, rows: int, choices: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        kept(arguments, rows)
    assert choices in str(error.value)


def test_where_accumulation_decides_more_it_is_not_changed() -> None:
    grpo = SimpleNamespace(train_batch_size=2, gradient_accumulation_steps=2, world_size=1, steps_per_generation=2)
    with pytest.raises(ConfigurationError, match="With 1 rank 1 x 8, 2 x 4"):
        kept(grpo, 8)
