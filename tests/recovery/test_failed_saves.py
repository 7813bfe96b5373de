"""What a save leaves that fails, or that cannot remove what was there before. One process: the others are made up."""

import errno
import json
import os
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from unsloth_accel import PeerError
from unsloth_accel.recovery import checkpoints
from unsloth_accel.recovery.checkpoints import Checkpoints, complete_or_absent, rotate


def write(beside: Path, name: str = "checkpoint-4") -> None:
    (beside / name).mkdir()
    (beside / name / "model.safetensors").write_text("weights")


def raise_full(*_: object) -> None:
    raise OSError("no space")


def save_in(folder: Path, fails: Callable[..., None] | None = None) -> None:
    with complete_or_absent(folder / "checkpoint-4", dict) as beside:
        write(beside)
        if fails is not None:
            fails()


def test_a_manifest_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "write_manifest", raise_full)
    with pytest.raises(OSError, match="no space"):
        save_in(tmp_path)
    assert os.listdir(tmp_path) == []


def test_where_another_rank_cannot_write_its_part_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "_collect", lambda key: ["", "OSError: no space"])
    with pytest.raises(PeerError, match="Rank 1 could not write its part"):
        save_in(tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("comes", [True, False])
def test_what_a_slower_rank_writes_after_an_error_is_not_left(
    comes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_late() -> None:
        time.sleep(0.5)
        os.makedirs(tmp_path / "checkpoint-4.incomplete" / "checkpoint-4", exist_ok=True)

    def wait_for_it(key: str) -> list[str]:
        slower.join()
        if not comes:
            raise PeerError("Rank 1 ended")
        return ["OSError: no space", ""]

    monkeypatch.setattr(checkpoints, "_collect", wait_for_it)
    slower = threading.Thread(target=write_late)
    slower.start()
    with pytest.raises(OSError, match="no space"):
        save_in(tmp_path, raise_full)
    slower.join()
    assert os.listdir(tmp_path) == []


def refuse_folders(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    fsync = os.fsync

    def sync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", sync)


def test_a_file_system_that_cannot_sync_folders_will_do_but_one_that_fails_will_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_folders(monkeypatch, errno.EINVAL)
    save_in(tmp_path)
    assert os.listdir(tmp_path) == ["checkpoint-4"]
    refuse_folders(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        save_in(tmp_path)


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders in which another process has a file open, on NFS: a file remains, and so they do."""
    rmdir = os.rmdir

    def refuse(path: Any, *args: Any, **kwargs: Any) -> None:
        if Path(path).name.startswith("checkpoint-"):
            raise OSError("Directory not empty")
        rmdir(path, *args, **kwargs)

    monkeypatch.setattr(os, "rmdir", refuse)


def test_what_cannot_be_removed_stays_and_is_named_and_training_goes_on(
    stuck: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    (tmp_path / "checkpoint-2").mkdir()
    save_in(tmp_path)
    rotate(tmp_path / "checkpoint-4", 1, None)
    names = "checkpoint-4.incomplete", "checkpoint-2"
    assert caplog.messages == [f"{tmp_path / name} could not be removed, and stays" for name in names]


def test_a_skipped_checkpoint_is_never_removed_and_does_not_count(tmp_path: Path) -> None:
    for age, step in enumerate((6, 2, 4, 8)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        os.utime(tmp_path / f"checkpoint-{step}", (age, age))
    rotate(tmp_path / "checkpoint-8", 2, None, skipped={"checkpoint-6"})
    assert sorted(os.listdir(tmp_path)) == ["checkpoint-4", "checkpoint-6", "checkpoint-8"]


def test_the_best_is_kept_by_its_name_and_counts_only_if_it_is_there(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        (tmp_path / f"checkpoint-{step}").mkdir()
        os.utime(tmp_path / f"checkpoint-{step}", (step, step))
    rotate(tmp_path / "checkpoint-6", 2, "spelled/otherwise/checkpoint-2")
    assert sorted(os.listdir(tmp_path)) == ["checkpoint-2", "checkpoint-6"]
    rotate(tmp_path / "checkpoint-6", 2, "was/removed/checkpoint-1")
    assert sorted(os.listdir(tmp_path)) == ["checkpoint-2", "checkpoint-6"]


def trainer_in(folder: Path, should_save: bool, **state: Any) -> Any:
    """What a save asks of a trainer, at step 4."""
    kept = SimpleNamespace(global_step=4, best_global_step=None, best_model_checkpoint=None, **state)
    kept.save_to_json = lambda file: Path(file).write_text(json.dumps({"best": kept.best_model_checkpoint}))
    args = {"output_dir": str(folder), "save_on_each_node": False, "save_total_limit": 1, "save_only_model": False}
    return SimpleNamespace(state=kept, args=SimpleNamespace(should_save=should_save, **args))


def save_as(trainer: Any, saves: Checkpoints) -> None:
    run_dir = trainer.args.output_dir
    saves.save(lambda: write(Path(saves.redirect(run_dir))), run_dir, dict)


def test_a_machine_that_keeps_no_checkpoints_need_not_have_written_anything(tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path, should_save=False)
    saves = Checkpoints(trainer, "auto")
    saves._shared = False
    save_as(trainer, saves)


@pytest.mark.parametrize("named", [None, "moved/from/here/checkpoint-2"])
def test_the_best_checkpoint_is_named_by_where_it_is_now(named: str | None, tmp_path: Path) -> None:
    (tmp_path / "checkpoint-2").mkdir()
    trainer = trainer_in(tmp_path, should_save=True)
    trainer.state.best_global_step, trainer.state.best_model_checkpoint = 2, named
    save_as(trainer, Checkpoints(trainer, "auto"))
    best = str(tmp_path / "checkpoint-2")
    assert trainer.state.best_model_checkpoint == best
    assert json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text()) == {"best": best}
    assert sorted(os.listdir(tmp_path)) == ["checkpoint-2", "checkpoint-4"]
