import copy
import gc
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import MethodType, ModuleType
from typing import Any
from weakref import ref

import pytest

from harness import ROOT
from unsloth_accel.ddp.mode import parallel_mode
from unsloth_accel.fixes import FIXES, Verdict, apply_fixes, registry, save_once, status
from unsloth_accel.fixes.fix import Fix
from unsloth_accel.fixes.table import as_markdown
from unsloth_accel.patching import replace_attribute


def state_of(name: str, model: Any = None) -> str:
    return next(row.state for row in status(model) if row.name == name)


def test_the_page_is_what_the_registry_says() -> None:
    page = (ROOT / "docs" / "fixes.md").read_text()
    assert page == as_markdown(), "run: python -m unsloth_accel.fixes.table > docs/fixes.md"


@pytest.mark.parametrize("fix", FIXES, ids=lambda fix: fix.name)
def test_each_fix_keeps_the_contract(fix: Fix) -> None:
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", fix.name)
    assert fix.upstream.startswith("https://github.com/")
    assert isinstance(fix.probe(None), Verdict)
    assert fix.probe(None).reason
    assert fix.until is None or len(fix.until.split()) == 2
    assert (fix.apply is None) == (fix.in_place is not None)
    assert [other.name for other in FIXES].count(fix.name) == 1


class Greeter:
    greet = "hello"


@pytest.fixture
def greeter(monkeypatch: pytest.MonkeyPatch) -> Greeter:
    """The registry with a single fix, which changes what this greeter says, on two ranks."""
    owner = Greeter()
    rename = Fix(
        name="rename",
        symptom="it greets in English",
        remedy="it greets in French",
        upstream="https://github.com/none",
        until=None,
        probe=lambda model: Verdict(True, "it is morning"),
        apply=lambda model: replace_attribute(owner, "greet", "bonjour"),
    )
    monkeypatch.setattr(registry, "FIXES", (rename,))
    monkeypatch.setenv("WORLD_SIZE", "2")
    return owner


def test_with_one_rank_nothing_is_applied(greeter: Greeter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE")
    assert apply_fixes().names == ()
    assert greeter.greet == "hello"


def test_applying_and_undoing_show_in_the_status(greeter: Greeter) -> None:
    assert state_of("rename") == "needed"
    with apply_fixes() as applied:
        assert applied.names == ("rename",)
        assert greeter.greet == "bonjour"
        assert state_of("rename") == "applied"
    assert greeter.greet == "hello"
    assert state_of("rename") == "needed"
    applied.undo()
    assert state_of("rename") == "needed"


def test_a_fix_that_is_not_needed_is_not_applied(
    greeter: Greeter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "unsloth_accel")
    not_needed = replace(registry.FIXES[0], probe=lambda model: Verdict(False, "it is evening"))
    monkeypatch.setattr(registry, "FIXES", (not_needed,))
    assert apply_fixes().names == ()
    assert (status()[0].state, status()[0].reason) == ("not needed", "it is evening")
    assert caplog.messages == ["fix rename: not needed, it is evening"], "with `debug` the reasons are logged"


def test_a_fix_that_finds_nothing_to_change_is_not_applied(greeter: Greeter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "FIXES", (replace(registry.FIXES[0], apply=lambda model: None),))
    assert apply_fixes().names == ()
    assert state_of("rename") == "needed"


def test_what_is_done_another_way_is_applied_while_it_is_in_place(
    greeter: Greeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    another_way = replace(registry.FIXES[0], apply=None, in_place=lambda model: bool(done))
    monkeypatch.setattr(registry, "FIXES", (another_way,))
    with apply_fixes() as applied:
        assert applied.names == (), "a handle takes nothing of it back"
        assert state_of("rename") == "needed"
        done.append("by a trainer")
        assert state_of("rename") == "applied"


def test_handles_may_be_undone_in_any_order(greeter: Greeter) -> None:
    first, second = apply_fixes(), apply_fixes()
    first.undo()
    assert greeter.greet == "bonjour"
    first.undo()
    assert greeter.greet == "bonjour"
    second.undo()
    assert greeter.greet == "hello"


def test_what_concerns_loading_is_held_until_it_is_released(greeter: Greeter, monkeypatch: pytest.MonkeyPatch) -> None:
    loading = replace(registry.FIXES[0], stage="loading")
    monkeypatch.setattr(registry, "FIXES", (loading, replace(loading, name="training", stage="training")))
    registry.apply_loading_fixes()
    assert greeter.greet == "hello", "there is nothing of Unsloth's to change yet"
    monkeypatch.setitem(sys.modules, "unsloth", ModuleType("unsloth"))
    registry.apply_loading_fixes()
    registry.apply_loading_fixes()
    assert greeter.greet == "bonjour"
    assert [fix.state for fix in status()] == ["applied", "needed"]
    with apply_fixes():
        registry.undo_loading_fixes()
        assert greeter.greet == "bonjour", "a trainer still needs it"
    assert greeter.greet == "hello"


def test_undo_removes_what_was_only_inherited() -> None:
    class Child(Greeter):
        pass

    undo = replace_attribute(Child, "greet", "bonjour")
    assert Child.greet == "bonjour"
    undo()
    assert Child.greet == "hello"
    assert "greet" not in vars(Child)


class Model:
    """Saves as Unsloth's models do: to a folder and a sibling of it, by a method bound to the instance."""

    save_pretrained_gguf: Callable[..., dict[str, Any]]

    def __init__(self) -> None:
        def save_pretrained_gguf(
            self: Model, save_directory: str, tokenizer: Any = None, push_to_hub: bool = False
        ) -> dict[str, Any]:
            for folder in (Path(save_directory), Path(f"{save_directory}_gguf")):
                folder.mkdir(parents=True)
                (folder / "file").write_text(str(id(self)))
            return {"gguf_files": [f"{save_directory}_gguf/file"], "from": str(save_directory), "is_vlm": False}

        self.save_pretrained_gguf = MethodType(save_pretrained_gguf, self)


@pytest.fixture
def save_once_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry with the one fix that changes a model, on two ranks."""
    monkeypatch.setattr(registry, "FIXES", (save_once.FIX,))
    monkeypatch.setenv("WORLD_SIZE", "2")


@pytest.mark.usefixtures("save_once_alone")
def test_a_fix_of_models_is_applied_where_a_model_has_it() -> None:
    with apply_fixes() as of_process:
        assert of_process.names == ()
        assert state_of("save_once") == "needed", "no model was given"
    fixed, other = Model(), Model()
    with apply_fixes(fixed) as of_model:
        assert of_model.names == ("save_once",)
        states = [state_of("save_once", model) for model in (fixed, other, None)]
        assert states == ["applied", "needed", "applied"]
    assert state_of("save_once") == "needed"


@pytest.mark.usefixtures("save_once_alone")
def test_a_model_without_the_methods_is_not_fixed() -> None:
    model = Greeter()
    assert apply_fixes(model).names == ()
    assert state_of("save_once", model) == "needed"


@pytest.mark.usefixtures("save_once_alone")
def test_two_trainers_of_a_model_may_let_go_of_it_in_any_order() -> None:
    model = Model()
    before = dict(vars(model))
    first, second = apply_fixes(model), apply_fixes(model)
    first.undo()
    assert state_of("save_once", model) == "applied"
    assert vars(model) != before
    second.undo()
    assert vars(model) == before


def is_freed(model: "ref[Model]") -> bool:
    gc.collect()
    return model() is None


@pytest.mark.usefixtures("save_once_alone")
@pytest.mark.parametrize("undone", [True, False])
def test_a_handle_does_not_keep_the_model_alive(undone: bool) -> None:
    model = Model()
    alive, handle = ref(model), apply_fixes(model)
    assert handle.names == ("save_once",)
    if undone:
        handle.undo()
    del model
    assert is_freed(alive)
    assert state_of("save_once") == "needed"
    handle.undo()


@pytest.mark.usefixtures("save_once_alone")
def test_a_copy_of_a_fixed_model_does_not_keep_it_alive() -> None:
    model = Model()
    handle = apply_fixes(model)
    alive, clone = ref(model), copy.deepcopy(model)
    del model
    assert is_freed(alive)
    assert clone.save_pretrained_gguf.__self__ is clone  # type: ignore[attr-defined]
    handle.undo()


@pytest.mark.parametrize(
    ("variable", "value", "mode"),
    [
        ("ACCELERATE_USE_FSDP", "true", "FSDP"),
        ("UNSLOTH_FSDP2", "native", "Unsloth's FSDP2"),
        ("UNSLOTH_TP_SIZE", "2", "Unsloth's tensor parallelism"),
        ("ACCELERATE_USE_FSDP", "false", None),
        ("UNSLOTH_TP_SIZE", "1", None),
    ],
)
def test_saving_stands_down_for_modes_that_split_the_weights(
    variable: str, value: str, mode: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    assert parallel_mode() == mode
    row = next(row for row in status() if row.name == "save_once")
    assert row.state == ("not needed" if mode else "needed")
    assert mode is None or mode in row.reason


def test_what_a_saving_method_returns_names_the_final_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = Model()
    before = dict(vars(model))
    undo = save_once.apply(model)
    assert undo is not None
    assert save_once.apply(model) is None, "each method once"
    assert model.save_pretrained_gguf("out/model/") == {
        "gguf_files": ["out/model_gguf/file"],
        "from": "out/model",
        "is_vlm": False,
    }
    assert sorted(path.name for path in Path("out").iterdir()) == ["model", "model_gguf"]
    clone = copy.deepcopy(model)
    clone.save_pretrained_gguf(save_directory=tmp_path / "clone")
    assert (tmp_path / "clone" / "file").read_text() == str(id(clone))
    undo()
    assert vars(model) == before


def test_a_repository_name_and_a_folder_on_kaggle_are_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = Model()
    save_once.apply(model)
    assert model.save_pretrained_gguf("user/repo", None, True)["from"] == "user/repo"
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    assert model.save_pretrained_gguf("kaggle/model")["from"] == "kaggle/model"


def test_the_registry_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'trl', 'unsloth', 'datasets'}"
    code = f"import sys, unsloth_accel.fixes; print({heavy} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == "set()"
