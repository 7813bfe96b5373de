"""The trainers: what they are whatever the order of imports, what they log, and how they stop."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness import ON_CPU, ROOT, launch, rank_results


WORKERS = ROOT / "tests" / "workers"
ORDERS = ["trl", "unsloth", "unsloth_accel"]
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def after(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> dict[str, Any]:
    """What a process finds that imported this first."""
    folder = tmp_path_factory.mktemp("orders")
    environment = {**os.environ, **ON_CPU, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    environment |= {"UNSLOTH_COMPILE_LOCATION": str(folder / "compiled"), "UNSLOTH_DISABLE_STATISTICS": "1"}
    found = {}
    for first in ORDERS:
        command: list[str | Path] = [sys.executable, WORKERS / "import_order.py", first, tiny_model, folder / first]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        found[first] = json.loads((folder / first).read_text())
    return found


@pytest.mark.cpu
@pytest.mark.parametrize("first", ORDERS)
def test_the_drop_in_is_the_same_whatever_is_imported_first(first: str, after: dict[str, Any]) -> None:
    assert after[first]["mro"] == after["unsloth_accel"]["mro"]
    assert after[first]["base is what trl has now"]
    assert after[first]["base is Unsloth's"]
    assert after[first]["loss of drop-in"] == after["unsloth_accel"]["loss of drop-in"]


@pytest.mark.cpu
def test_a_class_imported_before_unsloth_is_looked_up_again(after: dict[str, Any]) -> None:
    assert after["trl"]["early is stock"], "else there is nothing to look up again"
    assert after["trl"]["looked up again"]
    assert after["trl"]["loss of accelerated"] == after["unsloth"]["loss of drop-in"]


@pytest.mark.cpu
@pytest.mark.parametrize("first", ["trl", "unsloth_accel"], ids=["over TRL's own class", "over Unsloth's"])
def test_the_signature_is_trls_plus_plugin(first: str, after: dict[str, Any]) -> None:
    ours, theirs = after[first]["signatures"]
    *named, last = theirs
    plugin = ["plugin", "KEYWORD_ONLY", "None"]
    assert ours == ([*named, plugin, last] if last[1] == "VAR_KEYWORD" else [*theirs, plugin])


@pytest.mark.cpu
def test_what_the_mixin_overrides_is_still_there_with_its_arguments(after: dict[str, Any]) -> None:
    preparing = ["self", "dataset", "processing_class", "args", "packing", "formatting_func", "dataset_name"]
    assert after["unsloth_accel"]["relied on"] == {
        "_prepare_for_training": ["self", "max_steps", "train_dataloader", "resume_from_checkpoint"],
        "_maybe_log_save_evaluate": [
            *("self", "tr_loss", "grad_norm", "model", "trial", "epoch"),
            *("ignore_keys_for_eval", "start_time", "learning_rate"),
        ],
        "_finalize_training": ["self", "trial", "num_train_samples", "start_time"],
        "get_batch_samples": ["self", "epoch_iterator", "num_batches", "device"],
        "train": ["self", "resume_from_checkpoint", "trial", "ignore_keys_for_eval"],
        "_save_checkpoint": ["self", "model", "trial"],
        "_get_output_dir": ["self", "trial"],
        "_push_from_checkpoint": ["self", "checkpoint_folder"],
        "save_model": ["self", "output_dir", "_internal_call"],
        "_save": ["self", "output_dir", "state_dict"],
        "training_step": ["self", "model", "inputs", "num_items_in_batch"],
        "_prepare_dataset": preparing,
        "compute_loss": ["self", "model", "inputs", "return_outputs", "num_items_in_batch"],
    }


@pytest.mark.cpu
def test_any_trainer_can_be_accelerated_once(after: dict[str, Any]) -> None:
    found = after["unsloth_accel"]["wrapping"]
    assert found["is a subclass with the mixin"] == [True, True]
    assert found["name"] == "UnslothAcceleratedDPOTrainer"
    assert found["takes plugin"]
    assert found["again"], "what has the mixin is returned as it is"


@pytest.mark.cpu
def test_what_is_no_trainer_is_refused(after: dict[str, Any]) -> None:
    for kind, text in after["unsloth_accel"]["wrapping"]["refused"]:
        assert kind == "TypeError"
        assert text.startswith("`trainer_class` must be a subclass of transformers.Trainer, got ")


@pytest.mark.cpu
def test_bad_arguments_are_refused_before_training(after: dict[str, Any]) -> None:
    found = after["unsloth_accel"]
    refused = ["ConfigurationError", "`per_device_train_batch_size` must be at least 1, got 0."]
    assert found["batch 0"] == refused
    assert found["batch 0 of no model"] == refused, "before anything is loaded or prepared"
    for kind, text in found["rewards"]:
        assert kind == "ConfigurationError"
        assert text.startswith(
            "`model` must give one reward for each row, got a language model (PeftModelForCausalLM)."
        )
    kind, text = found["unknown argument"]
    assert (kind, text.split("()")[1]) == ("TypeError", " got an unexpected keyword argument 'plugins'")


@pytest.fixture(scope="module")
def unsloth_ranks(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> SimpleNamespace:
    out = tmp_path_factory.mktemp("unsloth") / "out"
    ended = launch(WORKERS / "trainers.py", tiny_model, out, timeout=120, expect_failure=True)
    return SimpleNamespace(
        seconds=time.time() - out.with_name("out-0.json").stat().st_mtime,
        stderr=ended.stderr,
        ranks=rank_results(out),
        stopped=json.loads(out.with_name("out-stopped").read_text()),
        was_saved=out.with_name("out.saved").exists(),
        groups=[out.with_name(f"out-{rank}.group").read_text() for rank in range(2)],
    )


@pytest.mark.gloo
@pytest.mark.parametrize("model", ["dense", "experts"])
def test_what_is_logged_is_what_trl_logs(model: str, unsloth_ranks: SimpleNamespace) -> None:
    history = unsloth_ranks.ranks[0][model]
    ours, plain = history["UnslothAcceleratedSFTTrainer"], history["SFTTrainer"]
    own = {"entropy", "mean_token_accuracy", "num_tokens"} | ({"aux_loss"} if model == "experts" else set())
    assert set(plain[0]) >= own, "TRL's own loss, with what it logs, is what runs here"
    assert [set(entry) for entry in ours] == [set(entry) for entry in plain]
    # An evaluation of a loss that is a sum is weighed by tokens: tests/trainers/test_evaluation.py.
    compared = [not (model == "dense" and "eval_loss" in entry) for entry in plain]
    assert any(compared)
    for mine, theirs, same in zip(ours, plain, compared, strict=True):
        assert not same or mine == pytest.approx(theirs, rel=TOLERANCE)


@pytest.mark.gloo
def test_a_split_model_is_refused_on_every_rank(unsloth_ranks: SimpleNamespace) -> None:
    for rank in unsloth_ranks.ranks:
        kind, text = rank["split"]
        assert kind == "ConfigurationError"
        assert text.startswith("`model` is split over cpu, meta; ")
        assert all(
            way in text for way in ("load_in_4bit=True", "UNSLOTH_FSDP2=1 accelerate launch", "python script.py")
        )


@pytest.mark.gloo
def test_nccl_on_the_cpu_is_refused_by_accelerate(unsloth_ranks: SimpleNamespace) -> None:
    """We leave this to it: it comes when the SFTConfig is made."""
    for rank in unsloth_ranks.ranks:
        assert rank["nccl"] == ["ValueError", "Your assigned backend nccl is not available, please use gloo"]


@pytest.mark.gloo
def test_the_choice_is_said_once_for_each_trainer_by_rank_0(unsloth_ranks: SimpleNamespace) -> None:
    """The drop-ins that trained on a dense model, on experts, and until one rank failed."""
    assert unsloth_ranks.stderr.count("2 ranks, gradients deferred: ") == 3


@pytest.mark.gloo
def test_a_rank_that_fails_stops_the_others_in_the_same_step(unsloth_ranks: SimpleNamespace) -> None:
    assert unsloth_ranks.seconds < 60
    assert unsloth_ranks.stopped["text"].startswith("Rank 1 failed in this optimizer step:")
    assert 'raise ValueError("only rank 1 has this row")' in unsloth_ranks.stopped["text"], "whoever speaks first"
    assert unsloth_ranks.stopped["step"] in (1, 2), "it failed in the second step"
    assert "[rank0]: unsloth_accel.errors.PeerError: Rank 1 failed" in unsloth_ranks.stderr
    assert '[rank1]:     raise ValueError("only rank 1 has this row")' in unsloth_ranks.stderr
    assert "[rank1]: ValueError: only rank 1 has this row" in unsloth_ranks.stderr
    assert "destroy_process_group() was not called" not in unsloth_ranks.stderr
    assert unsloth_ranks.groups == ["destroyed", "destroyed"], "torch warns only of NCCL"


@pytest.mark.gloo
def test_the_weights_of_a_failed_step_are_not_saved(unsloth_ranks: SimpleNamespace) -> None:
    kind, text = unsloth_ranks.stopped["saved"]
    assert kind == "PeerError"
    assert "go back to the last checkpoint" in text
    assert not unsloth_ranks.was_saved


@pytest.fixture(scope="module")
def plain_ranks(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    out = tmp_path_factory.mktemp("plain") / "out"
    ended = launch(WORKERS / "plain_trainer.py", out, timeout=90, expect_failure=True)
    seconds = time.time() - out.with_name("out-0.json").stat().st_mtime
    return SimpleNamespace(seconds=seconds, stderr=ended.stderr, ranks=rank_results(out))


@pytest.mark.gloo
@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("by rule", {"deferred": True, "find_unused_parameters": False}),
        ("overlapped", {"deferred": False, "find_unused_parameters": False, "gradient_as_bucket_view": True}),
        ("find unused", {"find_unused_parameters": True, "bucket_mb": 3}),
        ("plugin over arguments", {"find_unused_parameters": False}),
        ("static graph", {"deferred": False, "static_graph": True}),
    ],
)
def test_what_training_arguments_say_of_ddp_wins_over_the_rule(
    case: str, expected: dict[str, Any], plain_ranks: SimpleNamespace
) -> None:
    for rank in plain_ranks.ranks:
        assert rank[case].items() >= expected.items()
        assert rank[case]["weight"] == pytest.approx(plain_ranks.ranks[0]["by rule"]["weight"], abs=TOLERANCE)


@pytest.mark.gloo
def test_two_precisions_at_once_are_refused_by_transformers(plain_ranks: SimpleNamespace) -> None:
    """We leave this to it. Unsloth's CPU backend takes one of the two instead of refusing."""
    for rank in plain_ranks.ranks:
        assert rank["two precisions"] == ["ValueError", "At most one of fp16 and bf16 can be True, but not both"]


@pytest.mark.gloo
def test_ranks_that_would_train_apart_are_refused(plain_ranks: SimpleNamespace) -> None:
    for rank in plain_ranks.ranks:
        kind, text = rank["apart"]
        assert kind == "ConfigurationError"
        assert text.startswith("`WORLD_SIZE` is 2, but Accelerate sees 1 process: the ranks would train apart.")


@pytest.mark.gloo
def test_it_stands_down_for_a_mode_that_splits_the_model_and_says_so_once(plain_ranks: SimpleNamespace) -> None:
    assert plain_ranks.stderr.count("Unsloth's tensor parallelism is in charge, unsloth_accel stands down") == 1
    for rank in plain_ranks.ranks:
        assert rank["stands down"]["deferred"] is None
        assert rank["stands down"]["fixes"] == []
        assert rank["by rule"]["fixes"], "else nothing is shown"


@pytest.mark.gloo
def test_one_rank_saves_for_all_and_its_error_is_everybodys(plain_ranks: SimpleNamespace) -> None:
    weights = ["model.safetensors", "training_args.bin"]
    for number, rank in enumerate(plain_ranks.ranks):
        assert rank["saving"]["folder"] == weights
        assert set(rank["saving"]["checkpoint"]) >= set(weights), "no rank goes on before they are there"
        kind, text = rank["saving"]["error"]
        assert kind == ("PeerError" if number else "OSError")
        assert "no space left, after ['model.safetensors']" in text
        assert rank["saving"]["left"] == []


@pytest.mark.gloo
def test_a_run_resumed_on_cpu_follows_the_whole_run(plain_ranks: SimpleNamespace) -> None:
    for rank in plain_ranks.ranks:
        whole, resumed = rank["saving"]["weights"]
        assert resumed == whole


@pytest.mark.gloo
def test_a_rank_whose_data_fails_ends_the_job_with_its_traceback(plain_ranks: SimpleNamespace) -> None:
    """Outside the micro-batches nothing is announced: that rank leaves at once, and the launcher ends the others."""
    assert plain_ranks.seconds < 60
    assert '[rank1]:     raise ValueError("a row that cannot be collated")' in plain_ranks.stderr
    assert "[rank1]: ValueError: a row that cannot be collated" in plain_ranks.stderr
