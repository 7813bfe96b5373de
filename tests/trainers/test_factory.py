"""`accelerated(...)` of the trainers other than SFT: on 2 ranks they follow one rank (docs/trainers.md)."""

import re
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from harness import launch
from trajectories import Run, assert_follows, assert_same_weights, read_runs


WORKER = Path(__file__).parents[1] / "workers" / "other_trainers.py"
STEPS = 4

ADAPTERS = ["dpo", "dpo_precomputed", "kto", "kto_apo", "reward", "unsloth_trainer", "users_sft", "grpo_scripted"]
# Last, because after one `full_finetuning=True` Unsloth's `get_peft_model` does nothing in that process on a GPU.
FULL = ["dpo_full", "transformers_trainer", "classifier", "classifier/2"]
DETERMINISTIC = [*ADAPTERS, *FULL]
# On the CPU. The losses of DPO and KTO are a kernel of TRL's that needs triton; of GRPO see docs/trainers.md.
GENERATED = ["sft", "reward", "users_sft"]
ON_TWO_RANKS = [*ADAPTERS, "dpo/2", "grpo", *FULL]
CLASSES = {
    "dpo": "DPOTrainer",
    "kto": "KTOTrainer",
    "reward": "RewardTrainer",
    "grpo": "GRPOTrainer",
    "unsloth_trainer": "UnslothTrainer",
    "transformers_trainer": "Trainer",
    "users_sft": "Gathering",
}
# What TRL's trainers prepare from text, and the numbers they log of it.
PREPARED = ["dpo", "kto", "reward", "unsloth_trainer"]
LOGGED = ["kl", "reward", "reward_std", "logps/chosen", "rewards/chosen", "rewards/margins", "margin", "max_reward"]

Runs = dict[str, Run]
Ended = subprocess.CompletedProcess[str]


def train(
    cases: Sequence[str],
    config: str,
    num_processes: int | None,
    folder: Path,
    model: Path,
    then: Sequence[str] = (),
    timeout: float = 280,
    env: dict[str, str] | None = None,
    options: Sequence[str] = (),
) -> tuple[Ended, Runs]:
    """Runs the cases in one launch; how that ended, and the result of each case by its name."""
    out = folder / f"{config}.jsonl"
    settings = {
        "HF_DATASETS_CACHE": str(folder / "datasets"),
        "UNSLOTH_DATASET_NUM_PROC": "1",
        "UNSLOTH_COMPILE_DISABLE": "1",  # on a GPU torch.compile takes longer than all else, and changes no result
        "UNSLOTH_GRPO_PREFIX_GROUPER": "0",  # one rank's, of whole groups, is not TRL's loss: docs/trainers.md
        **(env or {}),
    }
    ended = launch(
        WORKER,
        *(model, out, *cases, *then),
        num_processes=num_processes,
        config=config,
        options=options,
        env=settings,
        timeout=timeout,
        expect_failure=bool(then),
    )
    runs = read_runs(out)
    assert list(runs) == list(cases)
    return ended, runs


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Runs:
    return train(DETERMINISTIC, "cpu_gloo", 1, tmp_path_factory.mktemp("one"), tiny_model)[1]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Ended, Runs]:
    cases = [*ON_TWO_RANKS, "classes"]
    return train(cases, "cpu_gloo", 2, tmp_path_factory.mktemp("two"), tiny_model, then=["fail"])


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Runs, Runs]:
    """With the trainers that Unsloth generates for GPUs, as many of them as the cases need."""
    folders = [tmp_path_factory.mktemp("generated") for _ in range(2)]
    few, more = ["sft_trainer", "reward_trainer"], ["dpo_trainer", "kto_trainer", "grpo_trainer"]
    environments = [{"GENERATED_TRAINERS": " ".join(names)} for names in (few, few + more)]
    one = train(GENERATED, "cpu_gloo", 1, folders[0], tiny_model, env=environments[0])[1]
    cases = [*GENERATED, "sft/2", "classes"]
    return one, train(cases, "cpu_gloo", 2, folders[1], tiny_model, env=environments[1])[1]


@pytest.fixture(scope="module")
def on_gpus(result_folder: Path, tiny_model: Path) -> tuple[Runs, Runs]:
    with ThreadPoolExecutor() as pool:
        common: dict[str, Any] = {"model": tiny_model, "timeout": 500, "options": ["--mixed_precision", "no"]}
        # transformers' own Trainer would take every GPU it sees, for nn.DataParallel.
        alone = {**common, "env": {"CUDA_VISIBLE_DEVICES": "0"}}
        one = pool.submit(train, DETERMINISTIC, "single", None, result_folder, **alone)
        two = pool.submit(train, ON_TWO_RANKS, "ddp_2gpu", None, result_folder, **common)
        return one.result()[1], two.result()[1]


def reference(runs: Runs, case: str) -> Run:
    """One rank takes all rows of a step at once, where its loss does not depend on that."""
    return runs[case] if case in runs else runs[case.partition("/")[0]]


def assert_trains_as(run: Run, expected: Run) -> None:
    assert_follows(run, expected)
    assert len(run["logs"]) == STEPS
    assert run["ranks_agree"]


@pytest.mark.gloo
@pytest.mark.parametrize("case", [*DETERMINISTIC, "dpo/2"])
def test_two_ranks_follow_one(case: str, one_rank: Runs, two_ranks: tuple[Ended, Runs]) -> None:
    run, expected = two_ranks[1][case], reference(one_rank, case)
    assert_trains_as(run, expected)
    assert_same_weights(run, expected)
    assert run["learning_rates"] == expected["learning_rates"]
    for key in ("num_tokens", "step", "epoch"):
        assert [entry.get(key) for entry in run["logs"]] == [entry.get(key) for entry in expected["logs"]]


@pytest.mark.gloo
@pytest.mark.parametrize("case", [*GENERATED, "sft/2"])
def test_two_ranks_of_a_generated_trainer_follow_one(case: str, generated: tuple[Runs, Runs]) -> None:
    one, two = generated
    run, expected = two[case], reference(one, case)
    assert_trains_as(run, expected)
    assert_same_weights(run, expected)
    assert run["moved"] > 1e-3
    assert expected["library_class"].startswith("Unsloth"), "TRL's own class would be another test"


@pytest.mark.gloo
def test_the_references_train(one_rank: Runs) -> None:
    for case, result in one_rank.items():
        assert result["moved"] > 1e-3, case
        assert len({entry["loss"] for entry in result["logs"]}) == STEPS, case
    assert one_rank["kto"]["logs"][-1]["kl"] > 0.01, "else the KL term, which mixes rows, was not tried"
    assert one_rank["dpo_full"]["has_reference_model"]
    assert one_rank["unsloth_trainer"]["learning_rates"] == [1e-2, 0.1]


@pytest.mark.gloo
def test_the_trainers_metrics_are_of_all_ranks(one_rank: Runs, two_ranks: tuple[Ended, Runs]) -> None:
    compared = set()
    for case in DETERMINISTIC:
        for ours, theirs in zip(two_ranks[1][case]["logs"], one_rank[case]["logs"], strict=True):
            shared = [key for key in LOGGED if key in theirs]
            compared |= set(shared)
            assert [ours[key] for key in shared] == pytest.approx([theirs[key] for key in shared], rel=1e-3, abs=1e-6)
    assert compared == set(LOGGED)


@pytest.mark.gloo
def test_each_step_is_logged_once(two_ranks: tuple[Ended, Runs]) -> None:
    lines = [line for line in two_ranks[0].stdout.splitlines() if line.startswith("{'loss'")]
    until_the_failure = 1
    assert len(lines) == STEPS * len(ON_TWO_RANKS) + until_the_failure


@pytest.mark.gloo
@pytest.mark.parametrize("case", CLASSES)
def test_the_class_is_named_after_the_trainer(case: str, two_ranks: tuple[Ended, Runs]) -> None:
    assert two_ranks[1][case]["class"] == f"UnslothAccelerated{CLASSES[case]}"


@pytest.mark.gloo
@pytest.mark.parametrize("case", PREPARED)
def test_one_rank_prepares_the_data(case: str, two_ranks: tuple[Ended, Runs]) -> None:
    first, second = two_ranks[1][case]["tokenised"]
    assert first >= 40
    assert second == 0


@pytest.mark.gloo
@pytest.mark.parametrize("case", [*PREPARED, "dpo/2"])
def test_the_tokens_of_each_rank_add_up_to_what_is_logged(case: str, two_ranks: tuple[Ended, Runs]) -> None:
    result = two_ranks[1][case]
    logged = [0, *(entry["num_tokens"] for entry in result["logs"])]
    assert [sum(ranks) for ranks in result["tokens"]] == [after - before for before, after in pairwise(logged)]


@pytest.mark.gloo
def test_grpo_samples_on_every_rank_and_learns_from_all(two_ranks: tuple[Ended, Runs]) -> None:
    """What is sampled differs from one rank, so what has to agree are the ranks with each other."""
    result = two_ranks[1]["grpo"]
    assert "error" not in result, result["at"]
    assert result["ranks_agree"]
    assert result["moved"] > 1e-3
    first, second = result["rewards"]
    assert [len(rewards) for rewards in (*first, *second)] == [4] * (2 * STEPS), "each rank judges its own rows once"
    assert first != second, "the ranks draw different samples"
    of_all = [sum(ours + theirs) / 8 for ours, theirs in zip(first, second, strict=True)]
    assert [entry["reward"] for entry in result["logs"]] == pytest.approx(of_all, abs=1e-6)


@pytest.mark.gloo
@pytest.mark.parametrize("kind", ["TRL's", "generated"])
def test_the_users_classes_stay_on_top(kind: str, request: pytest.FixtureRequest) -> None:
    found = request.getfixturevalue("two_ranks" if kind == "TRL's" else "generated")[1]["classes"]
    ours = ["UnslothAcceleratedSFTTrainer", "UnslothAcceleratedTrainerMixin"]
    assert found["mro"][:5] == ["UnslothAcceleratedGathering", "Gathering", "OwnStep", *ours]
    assert found["shown"] == ["model", "args", "texts", "tokenizer", "plugin"], "those of the user's `__init__`"
    assert found["same"] == [True] * 3, "the same class for the same class"


@pytest.mark.gloo
def test_a_users_own_compute_loss_gathers_from_all_ranks(two_ranks: tuple[Ended, Runs]) -> None:
    assert two_ranks[1]["users_sft"]["ranks_seen"] == [[0, 1]] * STEPS


@pytest.mark.gloo
def test_the_loss_of_a_classifier_is_put_right_and_that_is_said_once(two_ranks: tuple[Ended, Runs]) -> None:
    said = "average_tokens_across_devices = False: the loss is a mean already"
    trainers = [case for case in ON_TWO_RANKS if case.startswith("classifier")]
    assert two_ranks[0].stderr.count(said) == len(trainers)


@pytest.mark.gloo
def test_a_plan_that_is_asked_for_in_vain_is_said_to_be_unused(two_ranks: tuple[Ended, Runs]) -> None:
    assert len(re.findall(r"step plan: not used, because a \w*DPOTrainer computes", two_ranks[0].stderr)) == 1


@pytest.mark.gloo
@pytest.mark.parametrize("trainer", ["SFT", "DPO", "KTO", "Reward", "GRPO"])
@pytest.mark.parametrize("kind", ["TRL's", "generated"])
def test_arguments_by_position_are_refused_on_every_rank(
    kind: str, trainer: str, request: pytest.FixtureRequest
) -> None:
    found = request.getfixturevalue("two_ranks" if kind == "TRL's" else "generated")[1]["classes"]
    assert "error" not in found, found["at"]
    for rank in found["refused"]:
        (finding, why), empty, inside = rank[trainer]
        assert finding == "ConfigurationError"
        assert why.startswith("`auto_find_batch_size` must be False on several ranks, got True: ")
        assert empty == ["ConfigurationError", "`per_device_train_batch_size` must be at least 1, got 0."]
        assert inside[0] == "ConfigurationError"
        assert "in its `step` on several ranks, got 'lomo': it would update them in backward" in inside[1]


@pytest.mark.gloo
def test_a_class_over_one_that_unsloth_has_replaced_is_refused(
    two_ranks: tuple[Ended, Runs], generated: tuple[Runs, Runs]
) -> None:
    of_trl, of_unsloth = two_ranks[1]["classes"], generated[1]["classes"]
    for found in (of_trl, of_unsloth):
        assert "error" not in found, found["at"]
    assert of_trl["refused"][0]["early"] is None, "without a GPU Unsloth's derives from it"
    kind, text = of_unsloth["refused"][0]["early"]
    assert kind == "ConfigurationError"
    assert text.startswith("`Early` derives from the `trl.SFTTrainer` of before `import unsloth`")


@pytest.mark.gloo
def test_a_rank_that_fails_between_gathers_ends_the_job(two_ranks: tuple[Ended, Runs]) -> None:
    """The others wait where TRL gathers. Would the failed rank wait in the reduction, both would until the timeout."""
    assert '[rank1]:     raise ValueError("only rank 1 has this pair")' in two_ranks[0].stderr
    assert "[rank1]: ValueError: only rank 1 has this pair" in two_ranks[0].stderr


@pytest.mark.multigpu(gpus=2)
@pytest.mark.timeout(580)
@pytest.mark.parametrize("case", DETERMINISTIC)
def test_two_gpus_follow_one(case: str, on_gpus: tuple[Runs, Runs]) -> None:
    one, two = on_gpus
    assert_trains_as(two[case], one[case])


@pytest.mark.multigpu(gpus=2)
@pytest.mark.timeout(580)
def test_two_gpus_sample_and_agree(on_gpus: tuple[Runs, Runs]) -> None:
    result = on_gpus[1]["grpo"]
    assert "error" not in result, result["at"]
    assert result["ranks_agree"]
    assert result["moved"] > 1e-3
