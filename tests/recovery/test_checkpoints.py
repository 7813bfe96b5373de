"""A checkpoint is complete or it is not there, whoever is killed, and the newest complete one is resumed."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from harness import ON_CPU, ROOT, launch, rank_results
from trajectories import FLOAT32
from unsloth_accel import GradientSyncError
from unsloth_accel.recovery.checkpoints import complete_or_absent, rotate
from unsloth_accel.recovery.manifest import MANIFEST_NAME, find_damage, write_manifest
from unsloth_accel.recovery.newest import newest_complete


WORKER = ROOT / "tests" / "workers" / "checkpoints.py"
# Which rank is killed, and when.
FAULTS, MORE_FAULTS = [(1, "weights"), (0, "rename")], [(0, "weights"), (1, "all")]
LEFT = ["checkpoint-2", "checkpoint-4.incomplete"]
WEIGHTS = "model.safetensors"
FILES = [WEIGHTS, "optimizer.pt", "scheduler.pt", "rng_state_0.pth", "trainer_state.json", "deeper/adapter.bin"]
DAMAGES = {
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "flipped": lambda file: file.write_bytes(file.read_bytes()[:-1] + bytes([file.read_bytes()[-1] ^ 1])),
    "removed": lambda file: file.unlink(),
}


def write_checkpoint(folder: Path, with_manifest: bool = True) -> Path:
    for name in FILES:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"in": name, "of": folder.name}))
    if with_manifest:
        write_manifest(folder, {"global_step": 4})
    return folder


# Without its manifest it is one of stock transformers, and complete as such.
CASES = [(name, damage) for name in (*FILES, MANIFEST_NAME) for damage in DAMAGES][:-1]


@pytest.mark.parametrize(("name", "damage"), CASES)
def test_a_damaged_checkpoint_is_skipped_with_the_reason(
    name: str, damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before, newest = (write_checkpoint(tmp_path / f"checkpoint-{step}") for step in (2, 10))
    assert newest_complete(str(tmp_path), with_optimizer=True) == newest
    DAMAGES[damage](newest / name)
    caplog.set_level("INFO")
    assert newest_complete(str(tmp_path), with_optimizer=True) == before
    (line,) = caplog.messages
    assert f"{newest} is skipped: {name}" in line
    assert newest.exists()


def test_no_bit_of_the_manifest_can_change_unseen(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint-4")
    written = (folder / MANIFEST_NAME).read_bytes()
    for place in range(len(written)):
        for bit in range(8):
            (folder / MANIFEST_NAME).write_bytes(
                written[:place] + bytes([written[place] ^ 1 << bit]) + written[place + 1 :]
            )
            assert find_damage(folder), f"bit {bit} of byte {place}"


def test_every_piece_of_a_large_file_is_checked(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint-4", with_manifest=False)
    pieces = 32 * 2**20
    content = bytearray(2 * pieces + 5)
    (folder / WEIGHTS).write_bytes(content)
    write_manifest(folder, {})
    assert find_damage(folder) is None
    for place in (0, pieces - 1, pieces, 2 * pieces + 4):
        content[place] = 1
        (folder / WEIGHTS).write_bytes(content)
        assert find_damage(folder) == f"{WEIGHTS} is not what was written (xxh3_128)"
        content[place] = 0


@pytest.mark.parametrize("name", FILES[:-1])
def test_a_checkpoint_of_transformers_is_complete_if_its_files_are_there(name: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint-4", with_manifest=False)
    assert newest_complete(str(tmp_path), with_optimizer=True) == folder
    (folder / name).unlink()
    assert newest_complete(str(tmp_path), with_optimizer=True) is None
    weights_only = newest_complete(str(tmp_path), with_optimizer=False)
    assert weights_only == (None if name in (WEIGHTS, "trainer_state.json") else folder)


def test_all_shards_of_the_weights_must_be_there(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint-4", with_manifest=False)
    (folder / WEIGHTS).rename(folder / "model-1.safetensors")
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    assert newest_complete(str(tmp_path), with_optimizer=True) == folder
    (folder / "model-1.safetensors").unlink()
    assert newest_complete(str(tmp_path), with_optimizer=True) is None


def test_a_checkpoint_that_was_not_finished_is_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    assert newest_complete(str(tmp_path / "nowhere"), with_optimizer=True) is None
    newest = write_checkpoint(tmp_path / "checkpoint-10")
    for name in ("checkpoint-10.incomplete", "checkpoint-12.incomplete", "checkpoint-best"):
        write_checkpoint(tmp_path / name)
    assert newest_complete(str(tmp_path), with_optimizer=True) == newest
    assert caplog.messages == [
        f"resume: {tmp_path / 'checkpoint-12.incomplete'} is skipped: writing it was not finished"
    ]


def test_where_what_is_checked_while_it_is_written_fails_there_is_no_checkpoint(tmp_path: Path) -> None:
    def differ() -> dict[str, Any]:
        raise GradientSyncError("The ranks differ in trained weights")

    with (
        pytest.raises(GradientSyncError, match="differ"),
        complete_or_absent(tmp_path / "checkpoint-4", differ) as beside,
    ):
        write_checkpoint(beside / "checkpoint-4", with_manifest=False)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_takes_the_place_of_the_one_that_was_there(tmp_path: Path) -> None:
    final = write_checkpoint(tmp_path / "checkpoint-4")
    (final / "of_the_old_one").touch()
    (tmp_path / "checkpoint-4.incomplete" / "left").mkdir(parents=True)
    with complete_or_absent(final, lambda: {"global_step": 4}) as beside:
        write_checkpoint(beside / final.name, with_manifest=False)
        assert (final / "of_the_old_one").exists()
    assert find_damage(final) is None
    assert not (final / "of_the_old_one").exists()
    assert os.listdir(tmp_path) == ["checkpoint-4"]


def test_the_manifest_is_on_the_disk_before_the_checkpoint_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final, fsync, synced = tmp_path / "checkpoint-4", os.fsync, []

    def note(descriptor: int) -> None:
        synced.append((os.readlink(f"/proc/self/fd/{descriptor}"), final.exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    with complete_or_absent(final, dict) as beside:
        written = write_checkpoint(beside / final.name, with_manifest=False)
    assert synced == [(str(written / MANIFEST_NAME), False), (str(written), False), (str(tmp_path), True)]


def test_a_checkpoint_that_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    final = write_checkpoint(tmp_path / "checkpoint-4")

    def write_half() -> None:
        with complete_or_absent(final, dict) as beside:
            (beside / final.name).mkdir()
            raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        write_half()
    assert find_damage(final) is None
    assert os.listdir(tmp_path) == ["checkpoint-4"]


def test_the_limit_keeps_the_newest_and_the_best_and_counts_nothing_unfinished(tmp_path: Path) -> None:
    names = ["checkpoint-9", "checkpoint-2", "checkpoint-4", "checkpoint-6"]
    for age, name in enumerate(names):
        write_checkpoint(tmp_path / name)
        os.utime(tmp_path / name, (time.time() + age, time.time() + age))
    (tmp_path / "checkpoint-8.incomplete").mkdir()
    newest, best = tmp_path / "checkpoint-6", str(tmp_path / "checkpoint-2")

    def left(limit: int | None, best: str | None) -> list[str]:
        rotate(newest, limit, best)
        return sorted(path.name.removeprefix("checkpoint-") for path in tmp_path.iterdir())

    assert left(None, best) == ["2", "4", "6", "8.incomplete", "9"]
    assert left(3, best) == ["2", "4", "6", "8.incomplete"], "9 is of an earlier run: its step is later, but not it"
    assert left(1, best) == ["2", "6", "8.incomplete"]
    assert left(1, None) == ["6", "8.incomplete"]


def killed(out: Path, fault: tuple[int, str]) -> list[str]:
    """What a run leaves of which a rank is killed."""
    launch(WORKER, out, *fault, expect_failure=True)
    return sorted(path.name for path in Path(f"{out}.run").glob("checkpoint-*"))


@pytest.mark.long
def test_no_kill_while_a_checkpoint_is_written_leaves_anything_else(tmp_path: Path) -> None:
    assert [killed(tmp_path / "out", fault) for fault in MORE_FAULTS] == [LEFT] * len(MORE_FAULTS)


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory: pytest.TempPathFactory, full_disk: Path) -> dict[str, Any]:
    """Two ranks, of which one is killed in each run but the last: what was left, and what the last one saw."""
    out = tmp_path_factory.mktemp("checkpoints") / "out"
    left = [killed(out, fault) for fault in FAULTS]
    done = launch(WORKER, out, full_disk)
    return {"ranks": rank_results(out), "left": left, "stderr": done.stderr, "out": out}


@pytest.mark.gloo
def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(disturbed: dict[str, Any]) -> None:
    assert disturbed["left"] == [LEFT] * len(FAULTS)
    assert disturbed["ranks"][0]["killed"]["folders"] == ["checkpoint-6"], "`save_total_limit` is 1"


@pytest.mark.gloo
@pytest.mark.parametrize(("resumed", "before"), [("killed", 2), ("damaged", 4)])
def test_the_resumed_run_is_the_undisturbed_one(resumed: str, before: int, disturbed: dict[str, Any]) -> None:
    one, other = disturbed["ranks"]
    assert one["whole"]["torch"] != other["whole"]["torch"], "else the ranks draw the same, and one state would do"
    for rank in (one, other):
        run, whole = rank[resumed], rank["whole"]
        assert (run["before"], whole["before"]) == (before, 0)
        for what in ("losses", "weights", "torch", "python"):
            assert run[what] == whole[what], what


@pytest.mark.gloo
def test_a_finished_run_that_is_resumed_trains_no_step_more(disturbed: dict[str, Any]) -> None:
    for rank in disturbed["ranks"]:
        assert rank["finished"]["before"] is None, "no step has begun"
        assert rank["finished"]["weights"] == rank["whole"]["weights"]


@pytest.mark.gloo
def test_the_log_says_what_was_skipped_and_where_training_goes_on(disturbed: dict[str, Any]) -> None:
    whole = f"{disturbed['out']}.whole"
    for line in (
        f"resume: {whole}/checkpoint-8.incomplete is skipped: writing it was not finished",
        f"resume: {whole}/checkpoint-6 is skipped: optimizer.pt is not what was written (xxh3_128)",
        f"resume: training goes on from {whole}/checkpoint-4",
    ):
        assert disturbed["stderr"].count(line) == 1, line
    assert find_damage(Path(whole, "checkpoint-6")) is None, "it was written anew"


@pytest.mark.gloo
def test_a_checkpoint_of_transformers_is_resumed(disturbed: dict[str, Any]) -> None:
    for rank in disturbed["ranks"]:
        assert rank["resumed"]["before"] == 4
        for what in ("losses", "weights"):
            assert rank["resumed"][what] == pytest.approx(rank["stock"][what], rel=FLOAT32, abs=FLOAT32)


@pytest.mark.gloo
def test_the_best_checkpoint_is_named_by_its_place(disturbed: dict[str, Any]) -> None:
    for named in (name for rank in disturbed["ranks"] for name in rank["best"]):
        assert ".incomplete" not in named
        assert Path(named).is_dir()


@pytest.mark.gloo
def test_no_checkpoint_at_all_is_an_error_only_where_one_was_asked_for(disturbed: dict[str, Any]) -> None:
    for rank in disturbed["ranks"]:
        kind, text = rank["nothing"]
        assert kind == "ConfigurationError"
        assert "`resume_from_checkpoint` is True" in text


@pytest.mark.gloo
def test_where_no_checkpoint_can_be_resumed_all_ranks_say_so(disturbed: dict[str, Any]) -> None:
    for rank in disturbed["ranks"]:
        kind, text = rank["none_usable"]
        assert kind == "ConfigurationError"
        assert (
            "has no complete checkpoint, only checkpoint-6, checkpoint-4, checkpoint-2, which cannot be resumed"
            in text
        )
        assert "`resume_from_checkpoint=False` to start anew" in text


@pytest.mark.gloo
def test_a_stop_in_the_last_evaluation_saves_and_its_checkpoint_stays_beside_the_best(
    disturbed: dict[str, Any],
) -> None:
    for rank in disturbed["ranks"]:
        assert rank["stops"]["stopped"] == [143, 6, ["checkpoint-4", "checkpoint-6"]]


@pytest.mark.gloo
def test_the_best_checkpoint_of_a_run_that_was_moved_is_not_removed(disturbed: dict[str, Any]) -> None:
    for rank in disturbed["ranks"]:
        assert rank["stops"]["best"] == f"{disturbed['out']}.moved/checkpoint-4"
    assert disturbed["ranks"][0]["stops"]["moved"] == ["checkpoint-4", "checkpoint-8"]


@pytest.mark.gloo
def test_a_full_disk_leaves_only_complete_checkpoints(disturbed: dict[str, Any], full_disk: Path) -> None:
    if not full_disk.is_dir():
        pytest.skip("this user may not mount a small disk")
    (error, folders), (others_error, _) = (rank["full"] for rank in disturbed["ranks"])
    assert error is not None
    assert others_error is not None
    named = [name for name in folders if not name.endswith(".incomplete")]
    assert named, "the disk is too small for one"
    assert [find_damage(full_disk / name) for name in named] == [None] * len(named)


@pytest.mark.cpu
def test_one_rank_writes_what_transformers_writes_unless_resume_is_asked_for(tmp_path: Path) -> None:
    environment = {**os.environ, **ON_CPU, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, WORKER, tmp_path / "out"], cwd=tmp_path, env=environment, capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stderr.decode()
    seen = rank_results(tmp_path / "out", num_processes=1)[0]
    plain, stock, asked = seen["files"]
    assert plain == stock
    assert asked == sorted([*stock, MANIFEST_NAME])
    *runs, resumed = seen["runs"]
    for what in ("losses", "weights", "torch", "python"):
        assert runs[0][what] == runs[1][what] == runs[2][what] == resumed[what], what
    assert [run["before"] for run in seen["runs"]] == [0, 0, 0, 4]
    assert seen["forced"] is None
