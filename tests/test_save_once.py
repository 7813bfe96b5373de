import json
import subprocess
from pathlib import Path

import pytest

from launch import launch


WORKER = Path(__file__).parent / "workers" / "save_once.py"


def ranks_of(path, out, num_processes):
    return [json.loads((out / f"{path}-{rank}.json").read_text()) for rank in range(num_processes)]


def weights_of(folder):
    return {file.name: file.read_bytes() for file in folder.glob("*.safetensors")}


@pytest.fixture(scope="module")
def full_disk(tmp_path_factory):
    """A file system too small for the model, where this user may mount one."""
    folder = tmp_path_factory.mktemp("disk") / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        folder.rmdir()
        yield folder
        return
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def check_equal(ranks, kind):
    for rank in ranks:
        assert rank[f"{kind}-equal"] is True
        assert rank[f"{kind}-reused"] == [True, True]
        assert rank[f"{kind}-undone"] is True
        assert "save_once" in rank["fixes"]


@pytest.mark.gloo
def test_four_ranks_save_what_one_process_saves(tiny_model, full_disk, tmp_path):
    arguments = ("gpu_path", tiny_model, tmp_path, full_disk)
    failed = launch(WORKER, *arguments, num_processes=4, expect_failure=True, timeout=280)
    # The last act of the worker: rank 0 killed itself while its files were half written.
    assert "SIGKILL" in failed.stderr, failed.stderr
    assert (tmp_path / "killed.incomplete").is_dir()
    assert not (tmp_path / "killed").exists()
    ranks = ranks_of("gpu_path", tmp_path, 4)
    for kind in ("whole", "sharded"):
        check_equal(ranks, kind)
    wrong = ranks[0]["whole-wrong"] + ranks[0]["sharded-wrong"]
    assert wrong > 0, "without the fix every attempt was right: is the defect gone?"
    assert len(list((tmp_path / "sharded-all").glob("model-*.safetensors"))) > 1

    # The fixes that act before a model is loaded.
    assert len({rank["offloaded"][0] for rank in ranks}) == 4
    assert all(rank["offloaded"][1] for rank in ranks)
    assert [rank["named-device"] for rank in ranks] == [[False, True]] * 4
    assert [rank["statistics"] for rank in ranks] == [None, "1", "1", "1"]

    assert weights_of(tmp_path / "alone") == weights_of(tmp_path / "sharded-one")
    for key, text in {"file": "Not a directory", "full": "no disk space left"}.items():
        if key == "full" and not full_disk.is_dir():
            continue
        for number, rank in enumerate(ranks):
            kind, message, seconds = rank[key]
            assert text in message
            assert (kind == "PeerError") == (number > 0)
            assert seconds < 30
    if full_disk.is_dir():
        assert ranks[0]["full-left"] == []


@pytest.mark.gloo
def test_two_ranks_of_the_cpu_backend_save_what_one_process_saves(tiny_model, tmp_path):
    launch(WORKER, "cpu_backend", tiny_model, tmp_path, tmp_path / "none", num_processes=2, timeout=300)
    ranks = ranks_of("cpu_backend", tmp_path, 2)
    for kind in ("whole", "sharded"):
        check_equal(ranks, kind)
    assert len(list((tmp_path / "sharded-all").glob("model-*.safetensors"))) > 1
