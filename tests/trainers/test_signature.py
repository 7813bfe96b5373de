"""What `inspect.signature` shows of an accelerated class."""

import inspect
from inspect import Parameter
from typing import Any

import pytest

from unsloth_accel import UnslothAcceleratedTrainerMixin
from unsloth_accel.trainers.signature import signature_with_plugin


class Library:
    """As transformers has it: everything named."""

    def __init__(self, model: object, args: object = None, *, seed: int = 0) -> None:
        pass


class Generated(Library):
    """As Unsloth writes it for GRPO."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)


class Accelerated(UnslothAcceleratedTrainerMixin, Generated):
    pass


class Fixed(Accelerated):
    def __init__(self, path: str) -> None:
        super().__init__(path)


class ByKeyword(Accelerated):
    def __init__(self, path: str, **kwargs: Any) -> None:
        super().__init__(path, **kwargs)


class OwnFirst(Accelerated):
    def __init__(self, path: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)


class OwnDefault(Accelerated):
    def __init__(self, temperature: float = 1.0, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)


class Again(ByKeyword):
    def __init__(self, model: object, **kwargs: Any) -> None:
        super().__init__("path", model=model, **kwargs)


@pytest.mark.parametrize(
    ("cls", "shown"),
    [
        (Library, "(model, args=None, *, seed=0)"),
        (Accelerated, "(model, args=None, *, seed=0, plugin=None)"),
        (Fixed, "(path)"),
        (ByKeyword, "(path, *, model, args=None, seed=0, plugin=None)"),
        (OwnFirst, "(path, model, args=None, *, seed=0, plugin=None)"),
        (OwnDefault, "(temperature=1.0, *, model, args=None, seed=0, plugin=None)"),
        (Again, "(model, *, path, args=None, seed=0, plugin=None)"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_class_shows_all_that_a_call_may_name(cls: type, shown: str) -> None:
    parameters = [p.replace(annotation=Parameter.empty) for p in signature_with_plugin(cls).parameters.values()]
    assert str(inspect.Signature(parameters)) == shown


def test_inspect_shows_it_of_an_accelerated_class_and_what_derives_from_it() -> None:
    for cls in (Accelerated, Fixed, OwnDefault):
        assert inspect.signature(cls) == signature_with_plugin(cls)
