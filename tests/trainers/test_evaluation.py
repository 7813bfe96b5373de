"""An evaluation's loss is the mean over its tokens, however they fall into batches and ranks."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from harness import ROOT, launch
from trajectories import Run, read_runs


WORKER = ROOT / "tests" / "workers" / "evaluation.py"
CASES = ["plan=auto", "rows=5,plan=auto", "padding_free=no,plan=auto", "padding_free=no,plan=auto,rows=1"]
CASES += ["padding_free=no,plan=auto,transform=yes"]  # rows of unknown lengths
OUT_OF_MEMORY = ["plan=auto,rows=4,limit=150", "padding_free=no,plan=auto,rows=4,limit=150"]
PREDICTED = ["plan=auto,rows=4,predictions=yes", "padding_free=no,plan=auto,rows=4,predictions=yes"]
RAISED = "plan=auto,rows=4,limit=150,on_oom=raise"
# A mean of some 400 losses in float32, added up in another order.
FLOAT32 = 1e-6


def evaluated(ranks: int, cases: Sequence[str], folder: Path, model: Path) -> dict[str, Run]:
    launch(WORKER, model, folder / "out", *cases, num_processes=ranks, timeout=280)
    return read_runs(folder / "out")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> dict[int, dict[str, Run]]:
    cut = [f"{case},limit=150" for case in PREDICTED]
    cases = {1: [*CASES, RAISED], 2: [*CASES, *OUT_OF_MEMORY, *PREDICTED, *cut]}
    return {ranks: evaluated(ranks, cases[ranks], tmp_path_factory.mktemp("runs"), tiny_model) for ranks in cases}


@pytest.mark.gloo
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_the_loss_is_that_of_one_rank(case: str, ranks: int, runs: dict[int, dict[str, Run]]) -> None:
    assert_evaluates_as(runs[ranks][case], runs[1][CASES[0]])


@pytest.mark.long
def test_the_loss_of_four_ranks_is_that_of_one(
    runs: dict[int, dict[str, Run]], tmp_path: Path, tiny_model: Path
) -> None:
    for run in evaluated(4, CASES, tmp_path, tiny_model).values():
        assert_evaluates_as(run, runs[1][CASES[0]])


def assert_evaluates_as(run: Run, reference: Run) -> None:
    assert "error" not in run, run.get("at")
    assert run["loss"] == pytest.approx(reference["loss"], rel=FLOAT32)
    assert run["again"] == pytest.approx(reference["loss"], rel=FLOAT32)
    if run["accuracy"] is not None:
        assert run["accuracy"] == pytest.approx(reference["accuracy"], rel=FLOAT32)
    assert sum(run["tokens"]) == sum(reference["tokens"]), "no row twice"


@pytest.mark.gloo
@pytest.mark.parametrize("case", OUT_OF_MEMORY)
def test_a_batch_that_does_not_fit_is_computed_in_parts(case: str, runs: dict[int, dict[str, Run]]) -> None:
    run, reference = runs[2][case], runs[1][CASES[0]]
    assert "error" not in run, run.get("at")
    assert run["loss"] == pytest.approx(reference["loss"], rel=FLOAT32)
    if run["accuracy"] is not None:
        assert run["accuracy"] == pytest.approx(reference["accuracy"], rel=FLOAT32)
    assert run["forwards"][1] > run["forwards"][0], "the last rank computed some batches in parts"


@pytest.mark.gloo
@pytest.mark.parametrize("case", PREDICTED)
def test_so_is_one_whose_logits_are_wanted(case: str, runs: dict[int, dict[str, Run]]) -> None:
    whole, cut = runs[2][case], runs[2][f"{case},limit=150"]
    assert "error" not in cut, cut.get("at")
    assert cut["forwards"][1] > whole["forwards"][1], "the last rank computed some batches in parts"
    assert cut["loss"] == pytest.approx(whole["loss"], rel=FLOAT32)
    assert cut["predicted"] == pytest.approx(whole["predicted"], rel=FLOAT32)


@pytest.mark.gloo
def test_or_the_error_is_raised(runs: dict[int, dict[str, Run]]) -> None:
    assert runs[1][RAISED]["error"].startswith("OutOfMemoryError: CUDA out of memory")
