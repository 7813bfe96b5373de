"""`trainer.save_model`: after it returns, each rank finds on the disk what that very call has saved."""

import re
from pathlib import Path

import pytest

from harness import launch, rank_results


WORKER = Path(__file__).parents[1] / "workers" / "save_model.py"


@pytest.mark.gloo
def test_ranks_wait_for_the_save_that_they_call(tiny_model: Path, tmp_path: Path) -> None:
    launch(WORKER, tiny_model, tmp_path)
    first, second = rank_results(tmp_path / "seen")
    for rank in (first, second):
        assert rank["changed"], "the weights did not move, so the test shows nothing"
        assert rank["saved"], "a save of rank 0 alone was taken for the later one of all ranks"
    assert first["stamped"] is None
    kind, text = second["stamped"]
    assert kind == "ConfigurationError"
    assert re.search(r"Rank 0: .*/trainer-\d+-0\. Rank 1: .*/trainer-\d+-1\.", text)
