import copy
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import MethodType, SimpleNamespace

import pytest

from unsloth_accel.ddp.mode import parallel_mode
from unsloth_accel.fixes import FIXES, Verdict, apply_fixes, registry, save_once, status
from unsloth_accel.fixes.fix import Fix
from unsloth_accel.fixes.table import as_markdown
from unsloth_accel.patching import replace_attribute
from unsloth_accel.saving.atomic_directory import atomic_directory


ROOT = Path(__file__).parents[2]


def test_the_page_is_what_the_registry_says():
    page = (ROOT / "docs" / "fixes.md").read_text()
    assert page == as_markdown(), "run: python -m unsloth_accel.fixes.table > docs/fixes.md"


@pytest.mark.parametrize("fix", FIXES, ids=lambda fix: fix.name)
def test_each_fix_keeps_the_contract(fix):
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", fix.name)
    assert fix.upstream.startswith("https://github.com/")
    assert isinstance(fix.probe(None), Verdict)
    assert fix.probe(None).reason
    assert fix.until is None or len(fix.until.split()) == 2
    assert [other.name for other in FIXES].count(fix.name) == 1


@pytest.fixture
def one_fix(monkeypatch):
    """The registry with a single fix, which renames `owner.greet`."""
    owner = SimpleNamespace(greet="hello")
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
    return owner


def test_with_one_rank_nothing_is_applied(one_fix, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert apply_fixes().names == ()
    assert one_fix.greet == "hello"


def test_applying_and_undoing_show_in_the_status(one_fix, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert status()[0].state == "needed"
    with apply_fixes() as applied:
        assert applied.names == ("rename",)
        assert one_fix.greet == "bonjour"
        assert status()[0].state == "applied"
    assert one_fix.greet == "hello"
    assert status()[0].state == "needed"
    applied.undo()
    assert status()[0].state == "needed"


def test_a_fix_that_is_not_needed_is_not_applied(one_fix, monkeypatch, caplog):
    monkeypatch.setenv("WORLD_SIZE", "2")
    caplog.set_level("DEBUG", "unsloth_accel")
    not_needed = replace(registry.FIXES[0], probe=lambda model: Verdict(False, "it is evening"))
    monkeypatch.setattr(registry, "FIXES", (not_needed,))
    assert apply_fixes().names == ()
    assert (status()[0].state, status()[0].reason) == ("not needed", "it is evening")
    assert caplog.messages == ["fix rename: not needed, it is evening"], "with `debug` the reasons are logged"


def test_handles_may_be_undone_in_any_order(one_fix, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    first, second = apply_fixes(), apply_fixes()
    first.undo()
    assert one_fix.greet == "bonjour"
    first.undo()
    assert one_fix.greet == "bonjour"
    second.undo()
    assert one_fix.greet == "hello"


def test_what_concerns_loading_is_held_until_it_is_released(one_fix, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    loading = replace(registry.FIXES[0], stage="loading")
    monkeypatch.setattr(registry, "FIXES", (loading, replace(loading, name="training", stage="training")))
    registry.apply_loading_fixes()
    assert one_fix.greet == "hello", "there is nothing of Unsloth's to change yet"
    monkeypatch.setitem(sys.modules, "unsloth", SimpleNamespace())
    registry.apply_loading_fixes()
    registry.apply_loading_fixes()
    assert one_fix.greet == "bonjour"
    assert [fix.state for fix in status()] == ["applied", "needed"]
    with apply_fixes():
        registry.undo_loading_fixes()
        assert one_fix.greet == "bonjour", "a trainer still needs it"
    assert one_fix.greet == "hello"


def test_undo_removes_what_was_only_inherited():
    class Base:
        greet = "hello"

    class Child(Base):
        pass

    undo = replace_attribute(Child, "greet", "bonjour")
    assert Child.greet == "bonjour"
    undo()
    assert Child.greet == "hello"
    assert "greet" not in vars(Child)


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
def test_saving_stands_down_for_modes_that_split_the_weights(variable, value, mode, monkeypatch):
    monkeypatch.setenv(variable, value)
    assert parallel_mode() == mode
    save_once = next(row for row in status() if row.name == "save_once")
    assert save_once.state == ("not needed" if mode else "needed")
    assert mode is None or mode in save_once.reason


def test_staging_leaves_nothing_behind_when_writing_fails(tmp_path):
    def write():
        with atomic_directory(tmp_path / "new" / "model") as beside:
            Path(beside).mkdir()
            (Path(beside) / "half").write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write()
    assert list((tmp_path / "new").iterdir()) == []


def test_staging_replaces_an_export_of_other_shards_and_keeps_the_rest(tmp_path):
    old = tmp_path / "model"
    (old / "checkpoints").mkdir(parents=True)
    for name in (
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ):
        (old / name).write_text("old")
    (old / "README.md").write_text("mine")
    (old / "checkpoints" / "1").write_text("mine")
    (old / "config.json").write_text("old")
    (tmp_path / "model.incomplete").mkdir()
    (tmp_path / "model.incomplete" / "left by a killed writer").write_text("half")
    with atomic_directory(str(old) + "/") as beside:
        assert Path(beside).name == "model"
        (Path(beside) / "sub").mkdir(parents=True)
        (Path(beside) / "sub" / "file").write_text("new")
        (Path(beside) / "model.safetensors").write_text("new")
        (Path(beside) / "config.json").write_text("new")
        gguf = Path(f"{beside}_gguf")
        gguf.mkdir()
        (gguf / "model.gguf").write_text("new")
        assert (old / "config.json").read_text() == "old"
    found = {str(file.relative_to(tmp_path)): file.read_text() for file in tmp_path.rglob("*") if file.is_file()}
    assert found == {
        "model/README.md": "mine",
        "model/checkpoints/1": "mine",
        "model/config.json": "new",
        "model/model.safetensors": "new",
        "model/sub/file": "new",
        "model_gguf/model.gguf": "new",
    }


def test_an_adapter_does_not_replace_the_weights_of_a_model(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_text("base")
    with atomic_directory(tmp_path / "model") as beside:
        Path(beside).mkdir()
        (Path(beside) / "adapter_model.safetensors").write_text("adapter")
    assert sorted(file.name for file in (tmp_path / "model").iterdir()) == [
        "adapter_model.safetensors",
        "model.safetensors",
    ]


class Model:
    """Saves as Unsloth's models do: to a folder and a sibling of it, by a method bound to the instance."""

    def __init__(self):
        def save_pretrained_gguf(self, save_directory, tokenizer=None, push_to_hub=False):
            for folder in (Path(save_directory), Path(f"{save_directory}_gguf")):
                folder.mkdir(parents=True)
                (folder / "file").write_text(str(id(self)))
            return {"gguf_files": [f"{save_directory}_gguf/file"], "from": str(save_directory), "is_vlm": False}

        self.save_pretrained_gguf = MethodType(save_pretrained_gguf, self)


def test_what_a_saving_method_returns_names_the_final_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = Model()
    before = dict(vars(model))
    undo = save_once.apply(model)
    save_once.apply(model)()
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


def test_a_repository_name_and_a_folder_on_kaggle_are_passed_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = Model()
    save_once.apply(model)
    assert model.save_pretrained_gguf("user/repo", None, True)["from"] == "user/repo"
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    assert model.save_pretrained_gguf("kaggle/model")["from"] == "kaggle/model"


def test_the_registry_loads_nothing_heavy():
    heavy = "{'torch', 'transformers', 'trl', 'unsloth', 'datasets'}"
    code = f"import sys, unsloth_accel.fixes; print({heavy} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == "set()"
