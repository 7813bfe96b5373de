"""Whether the loss of a trainer is a mean of the micro-batch, where transformers takes it for a part of a sum.

Where a model's `forward` takes `**kwargs`, transformers hands it the number of labels of the whole step, believes the
loss to be divided by it, and multiplies by the number of ranks. More than half of its heads, those for classification
among them, drop that number, and nothing but their source tells:
https://github.com/huggingface/transformers/blob/v5.17.0/src/transformers/trainer.py#L2123
"""

import ast
import inspect
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from transformers import Trainer


def loss_is_mean(trainer: "Trainer") -> bool:
    """Whether `trainer` would multiply a mean by the number of ranks. False where the source does not tell."""
    if callable(trainer.compute_loss_func):
        return _drops_count(trainer.compute_loss_func)
    if not trainer.model_accepts_loss_kwargs or trainer.label_smoother is not None:
        return False
    return _is_computed_by_transformers(type(trainer)) and _forward_drops_count(trainer.model)


def _is_computed_by_transformers(trainer_class: type) -> bool:
    """Whether each `compute_loss` calls the next one, up to that of transformers, which multiplies."""
    from transformers import Trainer

    above = trainer_class.__mro__[: trainer_class.__mro__.index(Trainer)]
    overrides = [vars(cls)["compute_loss"] for cls in above if "compute_loss" in vars(cls)]
    return all(_always_calls_base(_body(override)) for override in overrides)


def _always_calls_base(body: Sequence[ast.stmt]) -> bool:
    """Whether statements use the `compute_loss` of a class above on every path: TRL's SFT does on one of two, and
    computes and multiplies its loss itself on the other."""
    for part in body:
        if isinstance(part, ast.If):
            calls = _always_calls_base(part.body) and _always_calls_base(part.orelse)
        elif isinstance(part, ast.With | ast.Try):
            calls = _always_calls_base(part.body)
        else:
            calls = any(_is_of_base(node) for node in ast.walk(part))
        if calls:
            return True
    return False


def _is_of_base(node: ast.AST) -> bool:
    """Whether it is `super().compute_loss`, or that of a class by its name."""
    is_own = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
    return isinstance(node, ast.Attribute) and node.attr == "compute_loss" and not is_own


def _forward_drops_count(model: Any) -> bool:
    if hasattr(model, "get_base_model"):  # PEFT passes everything on to the model that it wraps
        model = model.get_base_model()
    # Labels that `forward` does not name go on with the rest, to something that may use the count as well.
    return "labels" in inspect.signature(model.forward).parameters and _drops_count(model.forward, called_with="label")


def _drops_count(loss: Callable[..., Any], called_with: str = "") -> bool:
    """Whether `loss` neither names the count nor passes `**kwargs` on in a call that mentions `called_with`."""
    body = _body(loss)
    calls = [node for part in body for node in ast.walk(part) if isinstance(node, ast.Call)]
    passing_on = [ast.unparse(call) for call in calls if any(keyword.arg is None for keyword in call.keywords)]
    named = any("num_items_in_batch" in ast.unparse(part) for part in body)
    return bool(body) and not named and not any(called_with in call for call in passing_on)


def _body(function: Callable[..., Any]) -> list[ast.stmt]:
    """The statements of a function, without its parameters; none where there is no source of it alone."""
    if not inspect.isroutine(function):  # an object that is called
        function = type(function).__call__
    try:
        statement = ast.parse(textwrap.dedent(_source(function))).body[:1]
    except SyntaxError:  # of a lambda, the lines of the call that it stands in
        return []
    return statement[0].body if statement and isinstance(statement[0], ast.FunctionDef) else []


def _source(function: Callable[..., Any]) -> str:
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):  # typed into `python -c`, or not written in Python
        return ""
