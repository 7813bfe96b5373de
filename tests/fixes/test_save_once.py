"""What several ranks save together is what one process saves, and each rank finds it there."""

from pathlib import Path
from typing import Any

import pytest

from harness import launch, rank_results


WORKER = Path(__file__).parents[1] / "workers" / "save_once.py"


def weights_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("*.safetensors")}


def check_equal(ranks: list[dict[str, Any]], kind: str) -> None:
    for rank in ranks:
        assert rank[f"{kind}-equal"] is True
        assert rank[f"{kind}-reused"] == [True, True]
        assert rank[f"{kind}-later"] is True, "a call of rank 0 alone was taken for the later one of all"
        assert rank[f"{kind}-undone"] is True
        assert rank[f"{kind}-forgotten"] == []
        assert "save_once" in rank["fixes"]


@pytest.mark.long
def test_four_ranks_save_what_one_process_saves(tiny_model: Path, full_disk: Path, tmp_path: Path) -> None:
    arguments = ("gpu_path", tiny_model, tmp_path, full_disk)
    failed = launch(WORKER, *arguments, num_processes=4, expect_failure=True, timeout=570)
    # The last act of the worker: rank 0 killed itself while its files were half written.
    assert "SIGKILL" in failed.stderr, failed.stderr
    assert (tmp_path / "killed.incomplete").is_dir()
    assert not (tmp_path / "killed").exists()
    ranks = rank_results(tmp_path / "gpu_path", 4)
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
            kind, message = rank[key]
            assert text in message
            assert (kind == "PeerError") == (number > 0)
    if not full_disk.is_dir():
        pytest.skip("all but the full disk was shown: this user may not mount one")
    assert ranks[0]["full-left"] == []


@pytest.mark.gloo
def test_two_ranks_of_the_cpu_backend_save_what_one_process_saves(tiny_model: Path, tmp_path: Path) -> None:
    launch(WORKER, "cpu_backend", tiny_model, tmp_path, tmp_path / "none", num_processes=2, timeout=300)
    ranks = rank_results(tmp_path / "cpu_backend")
    for kind in ("whole", "sharded"):
        check_equal(ranks, kind)
    assert len(list((tmp_path / "sharded-all").glob("model-*.safetensors"))) > 1
