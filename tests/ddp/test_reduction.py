"""Which way gradients are averaged, and that one flat reduction averages them as torch's DDP does."""

import json

import pytest
import torch
from accelerate.utils import DDPCommunicationHookType, DistributedDataParallelKwargs
from torch import nn

from harness import ROOT, launch
from unsloth_accel import ConfigurationError, UnslothAcceleratorPlugin
from unsloth_accel.ddp.policy import DEFERRED_BYTES_LIMIT, choose_gradient_sync
from unsloth_accel.ddp.reduction import RankReport


WORKER = ROOT / "tests" / "workers" / "gradient_sync.py"
ONE_ROUNDING = torch.finfo(torch.float32).eps
FP32_BYTES = 4


def choose(model, handler=None, **plugin):
    return choose_gradient_sync(model, UnslothAcceleratorPlugin(**plugin), handler or DistributedDataParallelKwargs())


def model_of(size_in_bytes, frozen_bytes=0):
    """On the meta device, where gigabytes cost nothing."""
    model = nn.Module()
    model.trained = nn.Parameter(torch.empty(size_in_bytes // FP32_BYTES, device="meta"))
    model.frozen = nn.Parameter(torch.empty(frozen_bytes // FP32_BYTES, device="meta"), requires_grad=False)
    return model


SMALL, LARGE = model_of(2**20), model_of(DEFERRED_BYTES_LIMIT + FP32_BYTES)


def test_the_line_is_drawn_by_the_bytes_of_gradient():
    at_the_line = choose(model_of(DEFERRED_BYTES_LIMIT, frozen_bytes=2 * DEFERRED_BYTES_LIMIT))
    assert at_the_line.mode == "deferred", "what is frozen has no gradient"
    assert "2048 MiB" in at_the_line.reason
    assert choose(LARGE).mode == "overlapped"
    assert "2048 MiB" in choose(LARGE).reason


@pytest.mark.parametrize("asked", ["deferred", "overlapped"])
@pytest.mark.parametrize("model", [SMALL, LARGE], ids=["small", "large"])
def test_what_was_asked_for_wins_over_the_size(model, asked):
    choice = choose(model, gradient_sync=asked)
    assert choice.mode == asked
    assert choice.reason == f"`gradient_sync={asked!r}` was asked for"


@pytest.mark.parametrize(
    "handler",
    [
        DistributedDataParallelKwargs(static_graph=True),
        DistributedDataParallelKwargs(comm_hook=DDPCommunicationHookType.BF16),
        DistributedDataParallelKwargs(comm_hook=DDPCommunicationHookType.POWER_SGD),
    ],
    ids=["static graph", "bf16", "PowerSGD"],
)
def test_what_only_the_reducer_can_do_selects_the_reducer(handler):
    choice = choose(SMALL, handler)
    assert (choice.mode, choice.reason) == ("overlapped", "a communication hook or static graph was asked for")


def test_a_hook_in_the_handler_and_deferred_gradients_exclude_each_other():
    handler = DistributedDataParallelKwargs(comm_hook=DDPCommunicationHookType.FP16)
    with pytest.raises(ConfigurationError, match=r"`gradient_sync='deferred'` .* hook .*fp16"):
        choose(SMALL, handler, gradient_sync="deferred")


TEXT = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 32}


def text_model():
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**TEXT))


def with_adapters(*names):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["q_proj"])
    model = get_peft_model(text_model(), config, adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, config)
    return model


def with_experts():
    """All experts of a layer in one tensor, as transformers has them since its version 5."""
    from transformers import MixtralConfig, MixtralForCausalLM

    return MixtralForCausalLM(MixtralConfig(**TEXT, num_key_value_heads=2, num_local_experts=2))


def with_numbered_experts(trained=True):
    """A module an expert, as in models that bring their own code and in gpt-oss as Unsloth quantises it."""
    model = text_model()
    model.model.layers[0].mlp.experts = nn.ModuleList(nn.Linear(16, 16) for _ in range(2)).requires_grad_(trained)
    return model


def with_shared_keys():
    from transformers import Gemma4ForCausalLM, Gemma4TextConfig

    layers = {"num_hidden_layers": 2, "num_kv_shared_layers": 1, "layer_types": ["full_attention"] * 2}
    per_layer = {"vocab_size_per_layer_input": 32, "hidden_size_per_layer_input": 8}
    return Gemma4ForCausalLM(Gemma4TextConfig(**{**TEXT, **layers}, **per_layer, num_key_value_heads=2, head_dim=8))


def with_tower():
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlavaForConditionalGeneration(
        LlavaConfig(vision_config=CLIPVisionConfig(**vision), text_config=LlamaConfig(**TEXT))
    )


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: with_adapters("one", "two"), "several adapters"),
        (with_numbered_experts, "experts that a rank may not route to"),
        (with_tower, "a tower that text-only batches skip"),
        (lambda: with_adapters("one"), None),
        (with_experts, None),
        (lambda: with_numbered_experts(trained=False), None),
        (with_shared_keys, None),
        (text_model, None),
    ],
    ids=[
        "two adapters",
        "numbered experts",
        "tower",
        "one adapter",
        "experts",
        "frozen experts",
        "shared keys",
        "text",
    ],
)
def test_where_batches_differ_in_what_they_train_size_does_not_matter(make, reason, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # importing peft sets it for good
    model = make()
    asked = choose(model, gradient_sync="overlapped").reason
    monkeypatch.setattr("unsloth_accel.ddp.policy.DEFERRED_BYTES_LIMIT", 0)
    choice = choose(model)
    if reason is None:
        assert choice.mode == "overlapped"
        assert asked == "`gradient_sync='overlapped'` was asked for"
    else:
        assert choice.mode == "deferred"
        assert choice.reason.startswith(f"the model has {reason}; ")
        assert choice.reason.endswith("MiB of gradients are copied"), "what that costs is said where it is much"
        assert f"the model has {reason}, so checkpointing must have use_reentrant=False" in asked


@pytest.fixture(scope="module", params=[2, 3], ids=["2 ranks", "3 ranks"])
def ranks(request, tmp_path_factory):
    """What each rank found, by rank."""
    out = tmp_path_factory.mktemp("ranks") / "out"
    launch(WORKER, out, num_processes=request.param, timeout=90)
    return [json.loads(out.with_name(f"out-{rank}.json").read_text()) for rank in range(request.param)]


@pytest.mark.gloo
@pytest.mark.parametrize("case", ["plain", "accumulated", "none on rank 0"])
def test_the_average_is_that_of_ddp(case, ranks):
    for rank in ranks:
        # A third is rounded, and DDP multiplies by it where we divide; a half is exact.
        assert rank["averages"][case]["difference"] <= (ONE_ROUNDING if len(ranks) == 3 else 0.0)
        ours, ddp = rank["averages"][case]["none"]
        assert ours == ddp == ["never.bias", "never.weight"], "None only where no rank has a gradient"


@pytest.mark.gloo
def test_gradients_of_two_precisions_share_the_reduction(ranks):
    for rank in ranks:
        found = rank["mixed_precision"]
        assert set(found["dtypes"].values()) == {"torch.bfloat16", "torch.float32"}
        assert found["bf16 is the rounded mean"]
        assert found["fp32"] <= ONE_ROUNDING


@pytest.mark.gloo
def test_every_rank_hears_the_row_of_every_rank(ranks):
    assert all(rank["rows_of_every_rank"] == ranks[0]["rows_of_every_rank"] for rank in ranks)
    first, second = ([RankReport(*row) for row in step] for step in ranks[0]["rows_of_every_rank"])
    assert [row.tokens for row in first] == [10.0 + rank for rank in range(len(ranks))]
    assert [row.numbers for row in first] == [[rank + 0.5, -1.0, 0.0] for rank in range(len(ranks))]
    assert [row.tokens for row in second] == [1000.0 + rank for rank in range(len(ranks))]
    assert [row.numbers for row in second] == [[7.0, 0.0, 0.0]] * len(ranks)
    assert not any(row.failed for row in (*first, *second))


@pytest.mark.gloo
def test_every_rank_tells_how_long_it_waited_for_the_slowest(ranks):
    waited = [RankReport(*row).wait_seconds for row in ranks[0]["rows_of_every_rank"][1]]
    assert min(waited[:-1]) > 0.2, "the last rank came half a second late"
    assert waited[-1] < min(waited[:-1])


@pytest.mark.gloo
def test_ddp_still_has_the_switches_that_deferring_relies_on(ranks):
    for rank in ranks:
        counts = rank["counted"]
        assert set(counts["torch alone"]) == {"c10d::allreduce_", "c10d::broadcast_"}, "what must not happen shows"
        assert counts["first micro-batch"] == counts["second micro-batch"] == {}
        assert counts["reduction"] == {"c10d::allreduce_": 1}
        assert counts["closed"] == counts["torch alone"]


@pytest.mark.gloo
def test_overlapped_only_the_rows_are_exchanged(ranks):
    for rank in ranks:
        found = rank["overlapped"]
        assert [RankReport(*row).tokens for row in found["rows"]] == [number + 1.0 for number in range(len(ranks))]
        assert found["difference"] == 0.0
        assert found["none"][0] == found["none"][1]


@pytest.mark.gloo
def test_a_rank_that_fails_stops_the_others_at_once(ranks):
    *others, failed = [rank["failing_rank"] for rank in ranks]
    assert (failed["error"], failed["text"]) == ("ValueError", f"no row for rank {len(others)}")
    for other in others:
        assert other["error"] == "PeerError"
        assert f"Rank {len(others)} failed" in other["text"]
        assert other["seconds"] < 10
