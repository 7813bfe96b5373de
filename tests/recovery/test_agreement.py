"""Ranks that differ are named, with what differs, in one error on all; so is a run that is not the saved one."""

from pathlib import Path
from typing import Any

import pytest

from harness import ROOT, launch, rank_results
from unsloth_accel.recovery.manifest import read_facts


WORKER = ROOT / "tests" / "workers" / "resume_agreement.py"
RANKS = 3
# What differs, on which rank, and what the error says of it.
STARTS = {
    "arguments": "differ in arguments, at the start of training: rank 1: `learning_rate` is 0.1 there, else 0.05",
    "rows": "differ in data, at the start of training: rank 2: `rows` is 23 there, else 24",
    "content": "differ in data, at the start of training: rank 2: `sha256`",
    "versions": "differ in versions, at the start of training: rank 0: `peft` is '0.0.1' there",
    "seed": "differ in sampler, at the first step: rank 1, 2: `seed` is 1 there, else 0. Set `data_seed`",
    "collator": "differ in arguments, at the start of training: rank 2: `data_collator.padding_free` is True there",
    "class": "differ in arguments, at the start of training: rank 0: `data_collator` is 'Collator' there",
    "path": "differ in arguments, at the start of training: rank 1: `resume_from_checkpoint` is",
}
TRAINED_APART = {
    "weights": "differ in trained weights, at the save of step 2: rank 1: second.weight. ",
    "optimizer": "differ in optimizer state, at the save of step 2: rank 1: exp_avg of first.weight. ",
}

pytestmark = [pytest.mark.gloo, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("agreement") / "out"
    done = launch(WORKER, out, num_processes=RANKS)
    out.with_suffix(".stderr").write_text(done.stderr)
    return out


@pytest.fixture(scope="module")
def seen(out: Path) -> list[dict[str, Any]]:
    return rank_results(out, RANKS)


@pytest.mark.parametrize("what", STARTS)
def test_a_rank_that_starts_with_something_else_is_named_on_all_ranks(what: str, seen: list[dict[str, Any]]) -> None:
    errors = [rank[what] for rank in seen]
    assert errors == [errors[0]] * RANKS
    kind, text = errors[0]
    assert kind == "ConfigurationError"
    assert STARTS[what] in text


@pytest.mark.parametrize("what", TRAINED_APART)
def test_what_ranks_have_trained_apart_is_not_saved(what: str, seen: list[dict[str, Any]]) -> None:
    errors = [rank[what] for rank in seen]
    assert errors == [errors[0]] * RANKS
    (kind, text), is_saved = errors[0]
    assert kind == "GradientSyncError"
    assert TRAINED_APART[what] in text
    assert not is_saved


def test_an_optimizer_that_is_loaded_otherwise_is_noticed_before_the_first_step(seen: list[dict[str, Any]]) -> None:
    kind, text = seen[0]["loaded"]
    assert kind == "GradientSyncError"
    assert "differ in optimizer state, at the first step: rank 2: exp_avg_sq of first." in text


def test_what_changes_no_step_may_differ(seen: list[dict[str, Any]]) -> None:
    assert [rank["allowed"] for rank in seen] == [None] * RANKS


def test_the_manifest_says_what_the_run_was(seen: list[dict[str, Any]], out: Path) -> None:
    assert [rank["written"] for rank in seen] == [[None, None]] * RANKS
    facts = read_facts(Path(f"{out}.written", "checkpoint-2"))
    assert facts is not None
    expected = {"global_step": 2, "world_size": 3, "micro_batch": 2, "accumulation": 2, "global_batch": 12, "seed": 7}
    assert {name: facts[name] for name in expected} == expected
    assert facts["sampler"] == {"seed": 7, "steps_per_epoch": 2, "epoch": 1, "rows_seen_in_epoch": 0}
    assert facts["data"]["rows"] == 24
    assert facts["plan"] == "'keep'"
    assert {"python", "torch", "transformers", "accelerate"} <= facts["versions"].keys()


def resumed(seen: list[dict[str, Any]], case: str) -> dict[str, Any]:
    results = [rank["resumed"][case] for rank in seen]
    assert results == [results[0]] * RANKS
    return dict(results[0])


@pytest.mark.parametrize("case", ["same", "other seed"])
def test_a_run_goes_on_with_the_rows_of_the_checkpoints_seed(case: str, seen: list[dict[str, Any]]) -> None:
    assert resumed(seen, case) == {"error": None, "steps": 3, "accumulation": 2, "seed": 7}


def test_the_accumulation_is_changed_only_if_resume_is_automatic(seen: list[dict[str, Any]], out: Path) -> None:
    assert resumed(seen, "automatic") == {"error": None, "steps": 3, "accumulation": 4, "seed": 7}
    line = "resume: gradient_accumulation_steps = 4 instead of 2, so that a step on 3 ranks has 12 rows as in"
    assert out.with_suffix(".stderr").read_text().count(line) == 1
    kind, text = resumed(seen, "other accumulation")["error"]
    assert kind == "ConfigurationError"
    assert "got 1 x 2 x 3 = 6" in text
    assert "was written with 12. With 3 ranks 1 x 4, 2 x 2, 4 x 1 keep it, or set `ignore_data_skip=True`" in text


def test_a_batch_that_no_accumulation_makes_fit_is_an_error(seen: list[dict[str, Any]]) -> None:
    kind, text = resumed(seen, "too large")["error"]
    assert kind == "ConfigurationError"
    assert "got 3 x 2 x 3 = 18" in text


@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("other data", "`train_dataset` has rows of another content, "),
        ("fewer data", "`train_dataset` has 20 rows, "),
        ("grouped", "`train_sampling_strategy` is 'group_by_length', whose order of rows depends on"),
    ],
)
def test_other_rows_are_an_error(case: str, says: str, seen: list[dict[str, Any]]) -> None:
    kind, text = resumed(seen, case)["error"]
    assert kind == "ConfigurationError"
    assert says in text
    assert "`ignore_data_skip=True`" in text


def test_other_rows_are_taken_where_they_are_asked_for(seen: list[dict[str, Any]]) -> None:
    assert resumed(seen, "other rows, asked for")["error"] is None


def test_an_epoch_of_other_steps_is_an_error(seen: list[dict[str, Any]]) -> None:
    kind, text = seen[0]["epoch"]
    assert kind == "ConfigurationError"
    assert "An epoch has 3 optimizer steps here" in text
    assert "Resume with 3 ranks and `per_device_train_batch_size=2`, or set `ignore_data_skip=True`" in text
