"""What one rank of a node makes of a data set is, on every rank, what `datasets` alone would make of it."""

import json
from pathlib import Path

import pytest

from harness import launch, rank_results


WORKER = Path(__file__).parents[1] / "workers" / "shared_dataset.py"
# `datasets` gives these another fingerprint at every call.
RANDOM_FINGERPRINTS = {"not hashable"}


@pytest.mark.gloo
def test_every_kind_of_result_is_that_of_stock_datasets(tmp_path: Path) -> None:
    files = [tmp_path / "one.jsonl", tmp_path / "two.jsonl"]
    for part, file in enumerate(files):
        rows = [{"text": "word " * (number % 4), "number": number + 10 * part} for number in range(10)]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    launch(WORKER, tmp_path / "seen", *files, env={"HF_DATASETS_CACHE": str(tmp_path / "cache")})

    first, second = rank_results(tmp_path / "seen")
    for kind, result in first.items():
        assert second[kind]["shared"] == result["shared"], kind
        if kind in RANDOM_FINGERPRINTS:
            result["stock"]["fingerprint"] = result["shared"]["fingerprint"]
        assert result["shared"] == result["stock"], kind
