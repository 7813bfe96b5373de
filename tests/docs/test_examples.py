"""The examples, as a user starts them: they learn, and the hand-written loop trains what the trainer trains."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from pyarrow.parquet import read_table

from harness import ROOT, launch
from trajectories import FLOAT32


EXAMPLES = ROOT / "examples"
WORKER = ROOT / "tests" / "workers" / "examples.py"
STEPS = 6
DEMO_STEPS = 250
SPLITS = ("train", "test")
# Of the loops that are compared: a quarter of the examples' own, because Adam makes a step of a rounding where a
# gradient is near zero, and the next gradient then sees it times the learning rate.
LEARNING_RATE = 5e-4

pytestmark = pytest.mark.gloo


def groups(pattern: str, said: str) -> tuple[str, ...]:
    """The groups of the one match."""
    (match,) = re.finditer(pattern, said, re.MULTILINE)
    return match.groups()


def steps(said: str) -> dict[int, tuple[float, float]]:
    """The loss and gradient norm of each step."""
    found = re.findall(r"^step (\d+): loss ([\d.]+), gradient norm ([\d.]+)$", said, re.MULTILINE)
    return {int(number): (float(loss), float(norm)) for number, loss, norm in found}


def assert_same(ours: dict[int, tuple[float, float]], expected: dict[int, tuple[float, float]]) -> None:
    """As far as float32 goes and the seventh decimal, which is the last that is printed."""
    for step, numbers in expected.items():
        assert ours[step] == pytest.approx(numbers, rel=FLOAT32, abs=1.1e-7), f"step {step}"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """`make demo`, in fewer steps; it also makes the model and the rows of the runs below."""
    folder = tmp_path_factory.mktemp("demo") / "outputs"
    done = launch(EXAMPLES / "demo.py", "--steps", DEMO_STEPS, "--output", folder, timeout=280)
    return SimpleNamespace(
        folder=folder,
        stdout=done.stdout,
        everything=done.stdout + done.stderr,
        data=[folder / "small_llama", folder / "letters"],
    )


@pytest.fixture(scope="module")
def one_rank(demo: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The global batch of two ranks x two rows x two micro-batches."""
    out = tmp_path_factory.mktemp("one")
    model, dataset = demo.data
    options = ["--model", model, "--dataset", dataset, "--output", out, "--steps", STEPS]
    options += ["--batch-size", 8, "--accumulation", 1, "--learning-rate", LEARNING_RATE]
    done = launch(EXAMPLES / "own_loop.py", *options, num_processes=1, timeout=280)
    return SimpleNamespace(steps=steps(done.stdout), folder=out)


@pytest.fixture(scope="module")
def two_ranks(demo: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    out = tmp_path_factory.mktemp("two") / "out"
    launch(WORKER, *demo.data, out, STEPS, LEARNING_RATE, timeout=280)
    said = json.loads(out.with_suffix(".json").read_text())
    return SimpleNamespace(folder=out.with_suffix(".run"), **{name: steps(text) for name, text in said.items()})


def test_the_demo_answers_phrases_that_it_has_not_trained_on(demo: SimpleNamespace) -> None:
    trained, held_out = (set(read_table(demo.data[1] / f"{split}.parquet")["prompt"].to_pylist()) for split in SPLITS)
    assert not trained & held_out
    right_before, right_after, asked = map(int, groups(r"^right of \d+ +(\d+) +(\d+) +(\d+)", demo.stdout))
    assert (right_before, asked) == (0, len(held_out))
    assert right_after > asked / 2
    loss_before, loss_after = map(float, groups(r"^loss +([\d.]+) +([\d.]+)", demo.stdout))
    assert loss_after < loss_before / 4


def test_the_rows_of_the_demo_are_thousands_of_uneven_length(demo: SimpleNamespace) -> None:
    lengths = sorted(map(len, read_table(demo.data[1] / "train.parquet")["prompt"].to_pylist()))
    assert len(lengths) > 5000
    assert lengths[len(lengths) * 9 // 10] > 2 * lengths[len(lengths) // 10]


def test_the_demo_says_what_it_did_and_nothing_else(demo: SimpleNamespace) -> None:
    assert not re.findall(r"^.*(?:warn|deprecat|W\d{4} ).*$", demo.everything, re.MULTILINE | re.IGNORECASE)
    assert set(re.findall(r" 0/(\d+) \[", demo.everything)) == {str(DEMO_STEPS)}, "one progress bar"
    for once in ("2 ranks, gradients deferred", "'train_runtime'", "no GPU found, training on CPU"):
        assert demo.everything.count(once) == 1, once
    assert "destroy_process_group" not in demo.everything


def test_the_demo_ends_with_how_the_ranks_were_used_and_where_to_read_more(demo: SimpleNamespace) -> None:
    for words in (
        f"{DEMO_STEPS} steps on 2 ranks",
        "tokens/s",
        "x the mean",
        "waiting",
        "micro-batches as given, rows",
    ):
        assert words in demo.stdout
    assert f"unsloth-accel report {demo.folder}" in demo.stdout
    assert (demo.folder / "metrics.jsonl").stat().st_size > 0
    assert (demo.folder / "adapter_model.safetensors").stat().st_size > 0


def test_two_ranks_of_the_loop_follow_one(one_rank: SimpleNamespace, two_ranks: SimpleNamespace) -> None:
    assert sorted(one_rank.steps) == sorted(two_ranks.whole) == list(range(1, STEPS + 1))
    assert_same(two_ranks.whole, one_rank.steps)


def test_the_loop_goes_on_exactly_where_it_was_saved(two_ranks: SimpleNamespace) -> None:
    assert sorted(two_ranks.resumed) == [4, 5, 6]
    assert two_ranks.resumed == {step: two_ranks.whole[step] for step in (4, 5, 6)}


def test_the_loop_follows_the_trainer(two_ranks: SimpleNamespace) -> None:
    assert sorted(two_ranks.trainer) == list(range(1, STEPS + 1))
    assert_same(two_ranks.whole, two_ranks.trainer)


def test_the_loop_saves_its_adapter(one_rank: SimpleNamespace, two_ranks: SimpleNamespace) -> None:
    for run in (one_rank, two_ranks):
        assert (run.folder / "adapter_model.safetensors").stat().st_size > 0


def test_a_script_takes_its_settings_from_a_file(tiny_model: Path) -> None:
    done = launch(EXAMPLES / "configured.py", "--model", tiny_model, "--max_steps", 2, timeout=280)
    assert "per_device_train_batch_size = 4: set by enable_multi_gpu, the script said 2" in done.stdout
