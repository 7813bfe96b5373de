"""A folder appears whole, or not at all."""

from pathlib import Path

import pytest

from unsloth_accel.saving.atomic_directory import atomic_directory


def test_writing_leaves_nothing_behind_when_writing_fails(tmp_path: Path) -> None:
    def write() -> None:
        with atomic_directory(tmp_path / "new" / "model") as beside:
            Path(beside).mkdir()
            (Path(beside) / "half").write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write()
    assert list((tmp_path / "new").iterdir()) == []


def test_writing_replaces_an_export_of_other_shards_and_keeps_the_rest(tmp_path: Path) -> None:
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


def test_an_adapter_does_not_replace_the_weights_of_a_model(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_text("base")
    with atomic_directory(tmp_path / "model") as beside:
        Path(beside).mkdir()
        (Path(beside) / "adapter_model.safetensors").write_text("adapter")
    assert sorted(file.name for file in (tmp_path / "model").iterdir()) == [
        "adapter_model.safetensors",
        "model.safetensors",
    ]
