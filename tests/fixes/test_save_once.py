import json
import time
from pathlib import Path

import pytest

from harness import launch


WORKER = Path(__file__).parents[1] / "workers" / "save_once.py"


def ranks_of(path, out, num_processes):
    return [json.loads((out / f"{path}-{rank}.json").read_text()) for rank in range(num_processes)]


def weights_of(folder):
    return {file.name: file.read_bytes() for file in folder.glob("*.safetensors")}


def check_equal(ranks, kind):
    for rank in ranks:
        assert rank[f"{kind}-equal"] is True
        assert rank[f"{kind}-reused"] == [True, True]
        assert rank[f"{kind}-undone"] is True
        assert rank[f"{kind}-forgotten"] == []
        assert "save_once" in rank["fixes"]


@pytest.mark.gloo
def test_four_ranks_save_what_one_process_saves(tiny_model, full_disk, tmp_path):
    arguments = ("gpu_path", tiny_model, tmp_path, full_disk)
    failed = launch(WORKER, *arguments, num_processes=4, expect_failure=True, timeout=280)
    # The last act of the worker: rank 0 killed itself while its files were half written.
    assert "SIGKILL" in failed.stderr, failed.stderr
    assert time.time() - max((tmp_path / f"gpu_path-{rank}.json").stat().st_mtime for rank in range(4)) < 30
    assert (tmp_path / "killed.incomplete").is_dir()
    assert not (tmp_path / "killed").exists()
    ranks = ranks_of("gpu_path", tmp_path, 4)
    for kind in ("whole", "sharded"):
        check_equal(ranks, kind)
    wrong = ranks[0]["whole-wrong"] + ranks[0]["sharded-wrong"]
    assert wrong > 0, "without the fix every attempt was right: is the defect gone?"
    assert len(list((tmp_path / "sharded-all").glob("model-*.safetensors"))) > 1

    # The fixes that act before a model is loaded.
    assert len({rank["shared"] for rank in ranks}) == 1, "without the fix all ranks write and map one file"
    assert len({rank["offloaded"][0] for rank in ranks}) == 4
    assert all(rank["offloaded"][1] for rank in ranks)
    assert [rank["automatic"] for rank in ranks] == [[True] * 3] * 4, "Unsloth places these on the rank's GPU itself"
    assert [rank["named-device"] for rank in ranks] == [[False, True]] * 4
    assert [rank["statistics"] for rank in ranks] == [None, "1", "1", "1"]

    assert weights_of(tmp_path / "alone") == weights_of(tmp_path / "sharded-one")
    for key, text in {"file": "Not a directory", "full": "no disk space left", "push": ranks[0]["push"][1]}.items():
        if key == "full" and not full_disk.is_dir():
            continue
        for number, rank in enumerate(ranks):
            kind, message, seconds = rank[key]
            assert text in message
            assert (kind == "PeerError") == (number > 0)
            assert seconds < 30
    if not full_disk.is_dir():
        pytest.skip("all but the full disk was shown: this user may not mount one")
    assert ranks[0]["full-left"] == []


@pytest.mark.gloo
def test_two_ranks_of_the_cpu_backend_save_what_one_process_saves(tiny_model, tmp_path):
    launch(WORKER, "cpu_backend", tiny_model, tmp_path, tmp_path / "none", num_processes=2, timeout=300)
    ranks = ranks_of("cpu_backend", tmp_path, 2)
    for kind in ("whole", "sharded"):
        check_equal(ranks, kind)
    assert len(list((tmp_path / "sharded-all").glob("model-*.safetensors"))) > 1
