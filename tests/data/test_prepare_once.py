"""One rank of each node tokenises for the others, which train on the same rows."""

from pathlib import Path
from typing import Any

import pytest

from harness import launch, rank_results


WORKER = Path(__file__).parents[1] / "workers" / "tokenize_once.py"
Ranks = list[dict[str, Any]]


@pytest.fixture
def cache(tmp_path: Path) -> dict[str, str]:
    return {"HF_DATASETS_CACHE": str(tmp_path / "cache"), "UNSLOTH_DATASET_NUM_PROC": "1"}


def tokenised(ranks: Ranks, key: str) -> list[int]:
    return [rank[key]["tokenised"] for rank in ranks]


def assert_same_rows(ranks: Ranks, key: str, count: int | None = None) -> None:
    assert len({rank[key]["rows"] for rank in ranks}) == 1
    assert len({rank[key]["collator"] for rank in ranks}) == 1
    if count is not None:
        assert ranks[0][key]["count"] == count


@pytest.mark.parametrize("count", [pytest.param(2, marks=pytest.mark.gloo), pytest.param(4, marks=pytest.mark.long)])
def test_one_rank_tokenises_for_all(
    count: int, tiny_model: Path, read_only: Path, full_disk: Path, cache: dict[str, str], tmp_path: Path
) -> None:
    folders = (tiny_model, tmp_path, read_only, full_disk)
    failed = launch(WORKER, "trl", *folders, num_processes=count, env=cache, expect_failure=True, timeout=380)
    # The last act of the worker: rank 0 killed itself in the middle of a tokenisation.
    assert "SIGKILL" in failed.stderr, failed.stderr
    ranks = rank_results(tmp_path / "trl", count)

    idle = [0] * (count - 1)
    assert tokenised(ranks, "memory") == [340, *idle]
    assert_same_rows(ranks, "memory", 300)
    assert tokenised(ranks, "memory again") == [0, *idle]
    assert_same_rows(ranks, "memory again", 300)
    assert len({rank["memory again"]["evaluated"] for rank in ranks}) == 1
    # The cache is by content: what was prepared in another way is not taken for the same.
    assert len({ranks[0][key]["rows"] for key in ("memory", "shorter", "packed")}) == 3
    assert tokenised(ranks, "chats") == tokenised(ranks, "other template") == [60, *idle]
    assert tokenised(ranks, "chats again") == [0, *idle]
    assert ranks[0]["chats"]["rows"] == ranks[0]["chats again"]["rows"] != ranks[0]["other template"]["rows"]
    for key in ("shorter", "packed", "chats", "other template"):
        assert_same_rows(ranks, key)
    # The workers are those of one rank, however many ranks there are.
    assert [file.name.split("-")[1] for file in tmp_path.glob("worker-*")] == ["0", "0"]
    assert ranks[0]["workers"]["rows"] == ranks[0]["memory"]["rows"]
    assert_same_rows(ranks, "workers", 300)
    assert tokenised(ranks, "unfixed") == [200] * count, "without the fix every rank tokenises: is the defect gone?"
    assert tokenised(ranks, "files") == [250, *idle]
    assert_same_rows(ranks, "files")
    assert ranks[0]["files"]["count"] < 250  # packed
    assert tokenised(ranks, "formatted") == [300, *idle]
    assert_same_rows(ranks, "formatted", 300)
    assert ranks[0]["formatted"]["rows"] != ranks[0]["memory"]["rows"]
    # What `datasets` cannot hash, or is told not to cache, it repeats in the next run, but not on each rank.
    for key in ("unhashable", "uncached"):
        assert tokenised(ranks, key) == [300, *idle]
        assert_same_rows(ranks, key, 300)
    # Ranks that were given different rows keep them.
    assert [rank["different"]["count"] for rank in ranks] == list(range(100, 100 + count))
    assert tokenised(ranks, "streaming") == tokenised(ranks, "streaming")[:1] * count

    assert ranks[0]["error"] == ["RuntimeError", "this row cannot be tokenised"]
    keys = {"error": "RuntimeError: this row cannot be tokenised"}
    for key, folder in {"read-only": read_only, "full": full_disk}.items():
        if folder.is_dir():
            assert ranks[0][key][0] in ("OSError", "PermissionError")
            keys[key] = ranks[0][key][1]
    for key, text in keys.items():
        for rank in ranks[1:]:
            kind, message = rank[key]
            assert kind == "PeerError"
            assert text in message

    launch(WORKER, "second", *folders, num_processes=2, env=cache)
    second = rank_results(tmp_path / "second")
    assert tokenised(second, "memory") == [0, 0]
    assert second[0]["memory"]["rows"] == ranks[0]["memory"]["rows"]
    assert second[1]["leaves window"] == [False, True], "unfixed only with the next barrier of rank 0"
    assert [rank["undone"] for rank in second] == [True, True]
    if len(keys) < 3:
        pytest.skip(f"all but the read-only folder or the full disk was shown: this user may not mount one ({keys})")


@pytest.mark.long
def test_the_generated_trainer_tokenises_and_masks_once(
    tiny_model: Path, cache: dict[str, str], tmp_path: Path
) -> None:
    arguments = (WORKER, "gpu_path", tiny_model, tmp_path, tmp_path / "none", tmp_path / "none")
    launch(*arguments, num_processes=2, env=cache, timeout=300)
    ranks = rank_results(tmp_path / "gpu_path")
    for key in ("files", "memory"):
        assert ranks[0][key]["tokenised"] >= 300
        # Unsloth tries the first row on each rank to see whether the tokenizer doubles the BOS token.
        assert ranks[1][key]["tokenised"] < 10
        assert_same_rows(ranks, key)
    assert ranks[0]["responses"]["labels"] == ranks[1]["responses"]["labels"]
    assert ranks[0]["files"]["evaluated"] == ranks[1]["files"]["evaluated"]
    assert ranks[0]["responses"]["masked"] >= 300 + 40
    assert ranks[1]["responses"]["masked"] == 0
