"""Unsloth's own guard of `unsloth_compiled_cache` holds: this package changes nothing there.

Real generated trainers, written by several processes at once. What an old Unsloth did is not tested.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock

from harness import ON_CPU, ROOT, launch


WORKER = ROOT / "tests" / "workers" / "compiled_cache.py"
TRAINER = "UnslothSFTTrainer.py"

pytestmark = pytest.mark.long


def results(out: Path, ranks: int) -> list[dict[str, Any]]:
    return [json.loads(out.with_name(f"{out.name}-{rank}.json").read_text()) for rank in range(ranks)]


def start_another_job(out: Path, folder: Path) -> "subprocess.Popen[bytes]":
    """One rank, without a launcher."""
    ranks = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    env = {name: value for name, value in os.environ.items() if name not in ranks} | ON_CPU
    env |= {"HF_HUB_OFFLINE": "1", "UNSLOTH_DISABLE_STATISTICS": "1"}
    return subprocess.Popen(
        [sys.executable, str(WORKER), str(out), str(folder)],
        env=env,
        cwd=out.parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@pytest.fixture(scope="module")
def cold(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Four ranks and a second job fill one empty folder at the same time."""
    home = tmp_path_factory.mktemp("cold")
    folder = home / "cache"
    other = start_another_job(home / "other", folder)
    try:
        launch(WORKER, home / "ranks", folder, num_processes=4, timeout=280)
        assert other.wait(timeout=60) == 0
    finally:
        other.kill()
    return SimpleNamespace(folder=folder, ranks=results(home / "ranks", 4), other=results(home / "other", 1)[0])


def test_four_ranks_and_a_second_job_share_a_cold_folder(cold: SimpleNamespace) -> None:
    for result in [*cold.ranks, cold.other]:
        assert result["trainer"] == "UnslothSFTTrainer"
        assert result["from"] == str(cold.folder), "nobody had to fall back to another folder"
        assert result["sources"] == cold.ranks[0]["sources"]
    assert len(cold.ranks[0]["sources"]) > 5
    for file in cold.folder.glob("Unsloth*.py"):
        compile(file.read_text(), file, "exec")


def read_only(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o555)


def left_by_a_killed_job(folder: Path) -> None:
    """Half a file, and the file of a lock that nobody holds."""
    (folder / ".locks").mkdir(parents=True)
    (folder / ".locks" / f".lock.{TRAINER}").write_text("4242\n")
    (folder / TRAINER).write_text('"""\n2026.1.1\n"""\nclass UnslothSFT')


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Three ranks, each with a folder of its own in which something is wrong."""
    home = tmp_path_factory.mktemp("spoilt")
    folders = {name: home / name / "cache" for name in ("read only", "left behind", "locked")}
    for folder in folders.values():
        folder.parent.mkdir()
    (home / "temporary").mkdir()
    read_only(folders["read only"])
    left_by_a_killed_job(folders["left behind"])
    (folders["locked"] / ".locks").mkdir(parents=True)
    env = {"UNSLOTH_LOCK_TIMEOUT": "2", "TMPDIR": str(home / "temporary")}
    with FileLock(folders["locked"] / ".locks" / f".lock.{TRAINER}"):
        launch(WORKER, home / "ranks", *folders.values(), num_processes=3, env=env, timeout=280)
    ranks = dict(zip(folders, results(home / "ranks", 3), strict=True))
    return SimpleNamespace(folders=folders, ranks=ranks, temporary=str(home / "temporary" / "cache"))


def test_a_read_only_folder_is_left_for_a_temporary_one(spoilt: SimpleNamespace, cold: SimpleNamespace) -> None:
    rank = spoilt.ranks["read only"]
    assert rank["sources"] == cold.ranks[0]["sources"]
    assert rank["from"] == spoilt.temporary
    assert list(spoilt.folders["read only"].iterdir()) == []


def test_half_a_file_and_a_stale_lock_are_overcome(spoilt: SimpleNamespace, cold: SimpleNamespace) -> None:
    rank = spoilt.ranks["left behind"]
    assert rank["sources"] == cold.ranks[0]["sources"]
    assert rank["from"] == str(spoilt.folders["left behind"])


def test_a_lock_that_is_never_released_is_left_for_a_temporary_folder(
    spoilt: SimpleNamespace, cold: SimpleNamespace
) -> None:
    rank = spoilt.ranks["locked"]
    assert rank["sources"] == cold.ranks[0]["sources"]
    assert rank["from"] == spoilt.temporary
