"""What a trainer class can be called with: its own parameters, and those it passes on to the next class."""

import inspect
from collections.abc import Iterator, Sequence
from inspect import Parameter


_VARIADIC = {Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD}


def parameters_up_the_mro(classes: Sequence[type]) -> Iterator[list[Parameter]]:
    """The parameters of each `__init__`, without `self`, as far up as one takes `*args` or `**kwargs`.

    Args:
        classes (`Sequence[type]`): An MRO, or the rest of one.
    """
    for owner in classes:
        if owner is object or "__init__" not in vars(owner):
            continue
        _, *parameters = inspect.signature(vars(owner)["__init__"]).parameters.values()
        yield parameters
        if not _VARIADIC & {parameter.kind for parameter in parameters}:
            return


def signature_with_plugin(cls: type) -> inspect.Signature:
    """What `inspect.signature` shows of an accelerated class: all that a call may name, `plugin` last."""
    shown: dict[str, Parameter] = {}
    by_position = True
    for parameters in parameters_up_the_mro(cls.__mro__):
        for parameter in parameters:
            if parameter.kind not in _VARIADIC:
                shown.setdefault(parameter.name, parameter if by_position else _keyword_only(parameter))
        by_position = by_position and _passes_positions_on(parameters)
    if "plugin" in shown:  # not where a subclass with a fixed list of parameters does not take it
        shown["plugin"] = shown.pop("plugin")
    return inspect.Signature(sorted(shown.values(), key=lambda parameter: parameter.kind))


def _keyword_only(parameter: Parameter) -> Parameter:
    return parameter.replace(kind=Parameter.KEYWORD_ONLY)


def _passes_positions_on(parameters: list[Parameter]) -> bool:
    """A parameter with a default ends it: no signature can show one without a default behind it."""
    kinds = {parameter.kind for parameter in parameters}
    defaults = any(p.default is not Parameter.empty for p in parameters if p.kind is Parameter.POSITIONAL_OR_KEYWORD)
    return Parameter.VAR_POSITIONAL in kinds and not defaults
