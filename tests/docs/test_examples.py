"""The examples, as a user starts them: they learn, and the hand-written loop trains what the trainer trains."""

import json
import re
from types import SimpleNamespace

import pytest
from pyarrow.parquet import read_table

from harness import ROOT, launch
from trajectories import FLOAT32


EXAMPLES = ROOT / "examples"
WORKER = ROOT / "tests" / "workers" / "examples.py"
STEPS = 6
# Of the loops that are compared: a quarter of the examples' own, because Adam makes a step of a rounding where a
# gradient is near zero, and the next gradient then sees it times the learning rate.
LEARNING_RATE = 5e-4

pytestmark = pytest.mark.gloo


def steps(said: str) -> dict[int, tuple[float, float]]:
    """The loss and gradient norm of each step."""
    found = re.findall(r"^step (\d+): loss ([\d.]+), gradient norm ([\d.]+)$", said, re.MULTILINE)
    return {int(number): (float(loss), float(norm)) for number, loss, norm in found}


def assert_same(ours: dict[int, tuple[float, float]], expected: dict[int, tuple[float, float]]) -> None:
    """As far as float32 goes and the seventh decimal, which is the last that is printed."""
    for step, numbers in expected.items():
        assert ours[step] == pytest.approx(numbers, rel=FLOAT32, abs=1.1e-7), f"step {step}"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """`make demo`, in 30 steps; it also makes the model and the text of the runs below."""
    folder = tmp_path_factory.mktemp("demo") / "outputs"
    done = launch(EXAMPLES / "train.py", "--steps", 30, "--output", folder, timeout=280)
    return SimpleNamespace(
        folder=folder,
        stdout=done.stdout,
        stderr=done.stderr,
        data=[folder / "small_llama", folder / "stdlib.parquet"],
    )


@pytest.fixture(scope="module")
def one_rank(trained: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The global batch of two ranks x two rows x two micro-batches."""
    out = tmp_path_factory.mktemp("one")
    model, dataset = trained.data
    options = ["--model", model, "--dataset", dataset, "--output", out, "--steps", STEPS]
    options += ["--batch-size", 8, "--learning-rate", LEARNING_RATE]
    done = launch(EXAMPLES / "own_loop.py", *options, num_processes=1, timeout=280)
    return SimpleNamespace(steps=steps(done.stdout), folder=out)


@pytest.fixture(scope="module")
def two_ranks(trained: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    out = tmp_path_factory.mktemp("two") / "out"
    launch(WORKER, *trained.data, out, STEPS, LEARNING_RATE, timeout=280)
    said = json.loads(out.with_suffix(".json").read_text())
    return SimpleNamespace(folder=out.with_suffix(".run"), **{name: steps(text) for name, text in said.items()})


def test_the_demo_learns(trained: SimpleNamespace) -> None:
    losses = [float(loss) for loss in re.findall(r"'loss': '?([\d.]+)", trained.stdout)]
    assert len(losses) == 6, "one loss column, every five steps"
    assert losses[-1] < losses[0] - 0.2


def test_the_text_of_the_demo_is_thousands_of_rows_of_uneven_length(trained: SimpleNamespace) -> None:
    lengths = sorted(map(len, read_table(trained.data[1])["text"].to_pylist()))
    assert len(lengths) > 2000
    assert lengths[len(lengths) * 9 // 10] > 4 * lengths[len(lengths) // 10]


def test_the_demo_saves_the_adapter_once_and_answers_before_and_after(trained: SimpleNamespace) -> None:
    assert (trained.folder / "adapter_model.safetensors").stat().st_size > 0
    for label in ("before: ", "after:  "):
        assert len(re.findall(rf"^{label}['\"]", trained.stdout, re.MULTILINE)) == 1
    answers = dict(re.findall(r"^(before|after): *(.*)$", trained.stdout, re.MULTILINE))
    assert answers["before"] != answers["after"]


def test_the_demo_says_its_choice_once_and_imports_in_order(trained: SimpleNamespace) -> None:
    everything = trained.stdout + trained.stderr
    assert everything.count("2 ranks, gradients deferred") == 1
    assert "Unsloth should be imported before" not in everything
    assert everything.count("'train_runtime'") == 1
    assert len(re.findall(r" 0/30 \[00:00<", everything)) == 1, "one progress bar"


def test_what_unsloth_and_transformers_say_of_importing_and_loading_is_said_once(trained: SimpleNamespace) -> None:
    everything = trained.stdout + trained.stderr
    assert everything.count("no GPU found, training on CPU") == 1
    assert everything.count("Unsloth (CPU): LlamaForCausalLM") == 1
    assert len(re.findall("Loading weights: +0%", everything)) == 1
    assert "destroy_process_group" not in everything


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
