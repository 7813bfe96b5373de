"""Balanced rows train as one rank does."""

from pathlib import Path
from typing import Any

import pytest

from harness import ROOT, launch, rank_results


WORKER = ROOT / "tests" / "workers" / "balanced_rows.py"
# A sum in another order differs by about an epsilon of float32 for each of its roundings; SGD does not amplify it.
SAME = 1e-5


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("one") / "out"
    launch(WORKER, out, num_processes=1, timeout=240)
    return rank_results(out, 1)[0]


@pytest.mark.parametrize("ranks", [pytest.param(2, marks=pytest.mark.gloo), pytest.param(4, marks=pytest.mark.long)])
def test_the_losses_of_balanced_rows_are_those_of_one_rank(ranks: int, one_rank: Any, tmp_path: Path) -> None:
    launch(WORKER, tmp_path / "out", num_processes=ranks, timeout=240)
    several = rank_results(tmp_path / "out", ranks)[0]
    assert len(several) == 2 * len(one_rank)
    for case, losses in several.items():
        assert losses == pytest.approx(one_rank[case.partition(",")[0]], rel=SAME), case
