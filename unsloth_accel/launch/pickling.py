"""Turns a function and its arguments into bytes that a fresh process can run, or says by name what cannot be sent."""

import dis
import io
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import CodeType, FunctionType

from ..errors import ConfigurationError


class _DeviceTensorError(TypeError):
    """A tensor that lives on a device: every rank would load it onto the same card."""


def dumps_call(function: Callable[..., object], args: Sequence[object], kwargs: Mapping[str, object]) -> bytes:
    """Pickles a call: functions of importable modules by reference, those of a notebook or script by value.

    Args:
        function (`Callable`):
            The function each rank calls.
        args (`Sequence`):
            Its positional arguments.
        kwargs (`Mapping[str, object]`):
            Its keyword arguments.

    Returns:
        `bytes`: What `pickle.loads` turns back into `(function, args, kwargs)`.

    Raises:
        ConfigurationError: Naming the argument, or the variable the function uses, that cannot be sent.
    """
    try:
        return _dumps((function, tuple(args), dict(kwargs)))
    except Exception as error:  # pickling runs any object's own `__reduce__`, so any error can come out
        where, cause = _culprit(function, args, kwargs) or ("it", error)
        raise ConfigurationError(
            f"`target={_name(function)}` cannot be sent to the ranks: {where} cannot be sent ({cause}). Create it "
            "inside the function, where each rank makes its own, or pass in `args` what is needed to create it."
        ) from error


def _dumps(value: object) -> bytes:
    import cloudpickle

    class Pickler(cloudpickle.Pickler):
        def reducer_override(self, obj: object) -> object:
            torch = sys.modules.get("torch")
            if torch is not None and isinstance(obj, torch.Tensor) and obj.device.type != "cpu":
                raise _DeviceTensorError(f"it holds a tensor on {obj.device}")
            return super().reducer_override(obj)

    buffer = io.BytesIO()
    Pickler(buffer).dump(value)
    return buffer.getvalue()


def _culprit(
    function: Callable[..., object], args: Sequence[object], kwargs: Mapping[str, object]
) -> tuple[str, Exception] | None:
    """The first argument or variable that does not pickle by itself, in words, with its error."""
    named = [(f"`args[{index}]`", value) for index, value in enumerate(args)]
    named += [(f"`kwargs[{key!r}]`", value) for key, value in kwargs.items()]
    for where, value in named:
        error = _pickling_error(value)
        if error is not None:
            return f"{where} ({type(value).__name__})", error
    return _culprit_in(function, seen=set())


def _culprit_in(function: object, seen: set[int]) -> tuple[str, Exception] | None:
    """The variable used by `function`, or by a function it uses, that does not pickle."""
    if not isinstance(function, FunctionType) or id(function) in seen:
        return None
    seen.add(id(function))
    for name, value in _variables(function):
        error = _pickling_error(value)
        if error is not None:
            mine = f"its variable `{name}` ({type(value).__name__}), used in `{_name(function)}`,", error
            return _culprit_in(value, seen) or mine
    return None


def _pickling_error(value: object) -> Exception | None:
    try:
        _dumps(value)
    except Exception as error:  # returned and put into the ConfigurationError
        return error
    return None


def _variables(function: FunctionType) -> Iterator[tuple[str, object]]:
    """What a function sees besides its arguments: closure cells, defaults, and the globals its code loads."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # a name that is bound only after the function was defined
            continue
    for default in function.__defaults__ or ():
        yield "a default value", default
    for name in sorted(_loaded_globals(function.__code__)):
        if name in function.__globals__:
            yield name, function.__globals__[name]


def _loaded_globals(code: CodeType) -> set[str]:
    names = {instruction.argval for instruction in dis.get_instructions(code) if instruction.opname == "LOAD_GLOBAL"}
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return names.union(*map(_loaded_globals, inner))


def _name(function: Callable[..., object]) -> str:
    return str(getattr(function, "__qualname__", repr(function)))
