"""One writer for the methods by which Unsloth's models save themselves."""

import functools
import inspect
import os
from collections.abc import Callable
from types import MethodType
from typing import Any

from ..ddp.mode import parallel_mode
from ..patching import Undo, replace_attribute, undo_all
from ..ranks.run_once import run_once
from ..saving.atomic_directory import atomic_directory
from .fix import Fix, Verdict


# What Unsloth binds to a model instance: `patch_saving_functions` in unsloth/save.py, `_attach` in
# unsloth_zoo/cpu/loader.py. `save_pretrained` is transformers' own: all ranks write the same bytes.
WRITES_FOLDER = (
    "save_pretrained_merged",
    "save_pretrained_gguf",
    "save_pretrained_torchao",
    "save_pretrained_openvino",
    "save_pretrained_ggml",
)
PUSHES = ("push_to_hub", "push_to_hub_merged", "push_to_hub_gguf", "push_to_hub_openvino", "push_to_hub_ggml")


def probe(model: Any) -> Verdict:
    """Every release so far saves from every rank; modes that split the weights need every rank for it."""
    mode = parallel_mode(model)
    if mode is not None:
        return Verdict(False, f"{mode} saves from all ranks together")
    return Verdict(True, "every rank that calls a saving method of the model writes the same files")


def apply(model: Any) -> Undo | None:
    """Replaces the saving methods that are bound to `model`."""
    undos: list[Undo] = []
    for name in (*WRITES_FOLDER, *PUSHES):
        original = vars(model).get(name)
        if original is not None and not getattr(original, "_unsloth_accel_saves_once", False):
            undos.append(replace_attribute(model, name, _once(original, name in WRITES_FOLDER)))
    return (lambda: undo_all(undos)) if undos else None


def _once(original: MethodType, writes_folder: bool) -> MethodType:
    """The bound method `original`, run by rank 0 for all.

    It is bound anew, not closed over: a copy of the model (Unsloth merges one on CPU) must save itself.
    """
    function: Callable[..., Any] = original.__func__

    @functools.wraps(function)
    def saves_once(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = inspect.signature(function).bind(self, *args, **kwargs)
        first = list(call.signature.parameters)[1]  # save_directory or repo_id
        destination = os.fspath(call.arguments[first])

        def save_to(place: str) -> Any:
            call.arguments[first] = place
            return function(*call.args, **call.kwargs)

        # With `push_to_hub=True` the destination names a repository.
        pushes = (call.arguments | call.arguments.get("kwargs", {})).get("push_to_hub", False)
        write = _write_beside if writes_folder and not pushes and not _on_kaggle() else _write
        return run_once(
            lambda: write(save_to, destination), key=function.__name__, description=f"saving to {destination}"
        )

    saves_once._unsloth_accel_saves_once = True  # type: ignore[attr-defined]
    return MethodType(saves_once, original.__self__)


def _on_kaggle() -> bool:
    """Unsloth moves a folder that does not fit Kaggle's small disk to /tmp itself, by the name it was given."""
    return "KAGGLE_KERNEL_RUN_TYPE" in os.environ


def _write(save_to: Callable[[str], Any], destination: str) -> Any:
    return save_to(destination)


def _write_beside(save_to: Callable[[str], Any], destination: str) -> Any:
    with atomic_directory(destination) as beside:
        result = save_to(beside)
    return _rebased(result, beside, os.path.normpath(destination))


def _rebased(result: Any, beside: str, destination: str) -> Any:
    """Paths in what a saving method returns (a string, or lists and dicts of them) name the final place."""
    if isinstance(result, str):
        return destination + result.removeprefix(beside) if result.startswith(beside) else result
    if isinstance(result, list | tuple):
        return type(result)(_rebased(value, beside, destination) for value in result)
    if isinstance(result, dict):
        return {key: _rebased(value, beside, destination) for key, value in result.items()}
    return result


FIX = Fix(
    name="save_once",
    symptom=(
        "`model.save_pretrained_merged(...)` on N GPUs ends with exit code 0, but the model is wrong: each rank adds "
        "the LoRA update to the same files, W + 2 dW. GGUF, torchao and Hub exports are written N times."
    ),
    remedy="Rank 0 writes beside the folder and renames; the others wait outside any collective and share its error.",
    upstream="https://github.com/unslothai/unsloth/blob/main/unsloth/save.py",
    until=None,
    probe=probe,
    apply=apply,
    stage="model",
)
