"""Which checkpoint training goes on from where some cannot be, and that none is passed over without a word."""

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from unsloth_accel import ConfigurationError
from unsloth_accel.recovery import checkpoints, manifest
from unsloth_accel.recovery.checkpoints import Checkpoints
from unsloth_accel.recovery.manifest import MANIFEST_NAME, write_manifest
from unsloth_accel.recovery.newest import newest_complete


WEIGHTS = "model.safetensors"
TRAINING = ["optimizer.pt", "scheduler.pt", "rng_state_0.pth"]


def write(folder: Path, names: list[str], *, signed: bool = True) -> Path:
    folder.mkdir()
    for name in ["trainer_state.json", *names]:
        (folder / name).write_text("{}")
    if signed:
        write_manifest(folder, {})
    return folder


def cut_index(newest: Path) -> None:
    (newest / MANIFEST_NAME).unlink()
    (newest / WEIGHTS).unlink()
    (newest / f"{WEIGHTS}.index.json").write_text('{"weight_m')


@pytest.mark.parametrize(
    "spoil",
    [
        cut_index,
        lambda newest: (newest / MANIFEST_NAME).write_text("[1]"),
        lambda newest: (newest / MANIFEST_NAME).write_text("{}"),
    ],
)
def test_one_that_cannot_be_read_is_skipped(spoil: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before, newest = (write(tmp_path / f"checkpoint-{step}", [WEIGHTS, *TRAINING]) for step in (2, 4))
    spoil(newest)
    caplog.set_level("INFO")
    assert newest_complete(str(tmp_path), with_optimizer=True) == before
    assert f"{newest} is skipped: " in caplog.text


def test_one_on_a_bad_sector_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, newest = (write(tmp_path / f"checkpoint-{step}", [WEIGHTS, *TRAINING]) for step in (2, 4))
    hash_piece = manifest._hash_piece

    def read(file: Path, start: int) -> str:
        if file.parent == newest:
            raise OSError(errno.EIO, "Input/output error", str(file))
        return hash_piece(file, start)

    monkeypatch.setattr(manifest, "_hash_piece", read)
    assert newest_complete(str(tmp_path), with_optimizer=True) == before


@pytest.mark.parametrize("missing", TRAINING)
def test_one_of_ours_with_weights_only_is_no_place_to_go_on_with_the_optimizer(missing: str, tmp_path: Path) -> None:
    names = [WEIGHTS, *(name for name in TRAINING if name != missing)]
    before = write(tmp_path / "checkpoint-2", [WEIGHTS, *TRAINING])
    newest = write(tmp_path / "checkpoint-4", names)
    assert newest_complete(str(tmp_path), with_optimizer=True) == before
    assert newest_complete(str(tmp_path), with_optimizer=False) == newest


def to_resume(folder: Path, monkeypatch: pytest.MonkeyPatch, given: bool | None = None) -> str | bool | None:
    monkeypatch.setattr(checkpoints, "check_output_folder", lambda args, resumes: True)
    args = SimpleNamespace(output_dir=str(folder), save_only_model=False)
    trainer: Any = SimpleNamespace(args=args)
    return Checkpoints(trainer, "auto").to_resume(given)


def test_where_none_of_the_finished_ones_is_complete_training_does_not_begin_anew_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (write(tmp_path / "checkpoint-6", [WEIGHTS, *TRAINING]) / WEIGHTS).write_text("damaged")
    (tmp_path / "checkpoint-8.incomplete").mkdir()
    with pytest.raises(ConfigurationError, match=r"`resume` is 'auto', .* only checkpoint-6, .*=False` to start anew"):
        to_resume(tmp_path, monkeypatch)
    assert to_resume(tmp_path, monkeypatch, given=False) is False
    complete = write(tmp_path / "checkpoint-2", [WEIGHTS, *TRAINING])
    assert to_resume(tmp_path, monkeypatch) == str(complete)


def test_one_that_was_never_finished_does_not_keep_training_from_the_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "checkpoint-2.incomplete").mkdir()
    assert to_resume(tmp_path, monkeypatch) is None
