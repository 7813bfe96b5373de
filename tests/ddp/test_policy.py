"""Which way gradients are averaged, and how DDP is set up for it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from accelerate.utils import DDPCommunicationHookType, DistributedDataParallelKwargs
from torch import nn

from unsloth_accel import ConfigurationError, UnslothAcceleratorPlugin
from unsloth_accel.ddp.policy import DEFERRED_BYTES_LIMIT, GradientSyncChoice, choose_gradient_sync


FP32_BYTES = 4


def choose(
    model: nn.Module, handler: DistributedDataParallelKwargs | None = None, compiled: bool = False, **plugin: Any
) -> GradientSyncChoice:
    handler = handler or DistributedDataParallelKwargs()
    return choose_gradient_sync(model, UnslothAcceleratorPlugin(**plugin), handler, compiled=compiled)


def model_of(size_in_bytes: int, frozen_bytes: int = 0) -> nn.Module:
    """On the meta device, where gigabytes cost nothing."""
    model = nn.Module()
    model.trained = nn.Parameter(torch.empty(size_in_bytes // FP32_BYTES, device="meta"))
    model.frozen = nn.Parameter(torch.empty(frozen_bytes // FP32_BYTES, device="meta"), requires_grad=False)
    return model


SMALL, LARGE = model_of(2**20), model_of(DEFERRED_BYTES_LIMIT + FP32_BYTES)


def test_the_line_is_drawn_by_the_bytes_of_gradient() -> None:
    at_the_line = choose(model_of(DEFERRED_BYTES_LIMIT, frozen_bytes=2 * DEFERRED_BYTES_LIMIT))
    assert at_the_line.mode == "deferred", "what is frozen has no gradient"
    assert "2048 MiB" in at_the_line.reason
    assert choose(LARGE).mode == "overlapped"
    assert "2048 MiB" in choose(LARGE).reason


@pytest.mark.parametrize("asked", ["deferred", "overlapped"])
@pytest.mark.parametrize("model", [SMALL, LARGE], ids=["small", "large"])
def test_what_was_asked_for_wins_over_the_size(model: nn.Module, asked: str) -> None:
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
def test_what_only_the_reducer_can_do_selects_the_reducer(handler: DistributedDataParallelKwargs) -> None:
    choice = choose(SMALL, handler)
    assert (choice.mode, choice.reason) == ("overlapped", "a communication hook or static graph was asked for")


def test_a_hook_in_the_handler_and_deferred_gradients_exclude_each_other() -> None:
    handler = DistributedDataParallelKwargs(comm_hook=DDPCommunicationHookType.FP16)
    with pytest.raises(ConfigurationError, match=r"`gradient_sync='deferred'` .* hook .*fp16"):
        choose(SMALL, handler, gradient_sync="deferred")


def test_a_static_graph_in_the_handler_and_deferred_gradients_exclude_each_other() -> None:
    handler = DistributedDataParallelKwargs(static_graph=True)
    with pytest.raises(ConfigurationError, match=r"`gradient_sync='deferred'` .* `static_graph=True`"):
        choose(SMALL, handler, gradient_sync="deferred")


TEXT: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 32,
}


def text_model() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**TEXT))


def with_adapters(*names: str) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["q_proj"])
    model = get_peft_model(text_model(), config, adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, config)
    return model


def with_experts() -> nn.Module:
    """All experts of a layer in one tensor, as transformers has them since its version 5."""
    from transformers import MixtralConfig, MixtralForCausalLM

    return MixtralForCausalLM(MixtralConfig(**TEXT, num_key_value_heads=2, num_local_experts=2))


def with_numbered_experts(trained: bool = True) -> nn.Module:
    """A module an expert, as in models that bring their own code and in gpt-oss as Unsloth quantises it."""
    model: Any = text_model()
    model.model.layers[0].mlp.experts = nn.ModuleList(nn.Linear(16, 16) for _ in range(2)).requires_grad_(trained)
    return cast(nn.Module, model)


def with_shared_keys() -> nn.Module:
    from transformers import Gemma4ForCausalLM, Gemma4TextConfig

    layers: dict[str, Any] = {"num_hidden_layers": 2, "num_kv_shared_layers": 1, "layer_types": ["full_attention"] * 2}
    per_layer: dict[str, Any] = {"vocab_size_per_layer_input": 32, "hidden_size_per_layer_input": 8}
    return Gemma4ForCausalLM(Gemma4TextConfig(**{**TEXT, **layers}, **per_layer, num_key_value_heads=2, head_dim=8))


def with_tower() -> nn.Module:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    vision: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
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
def test_where_batches_differ_in_what_they_train_size_does_not_matter(
    make: Callable[[], nn.Module], reason: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
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
        assert choice.reason.endswith("MiB of gradients are reduced after backward"), "said where it is much"
        assert f"the model has {reason}, so checkpointing must have use_reentrant=False" in asked


def test_compiled_as_a_whole_ddp_reduces_inside_the_graph() -> None:
    choice = choose(SMALL, compiled=True)
    assert (choice.mode, choice.compiled) == ("overlapped", True)
    assert choice.reason == "torch.compile takes in DDP's reducer; ranks exchange no reports"
    with pytest.raises(ConfigurationError, match="`gradient_sync='deferred'` does not work with `torch_compile`"):
        choose(SMALL, compiled=True, gradient_sync="deferred")


def test_sparse_gradients_are_left_to_the_reducer() -> None:
    choice = choose(nn.Embedding(4, 2, sparse=True))
    assert (choice.mode, choice.reason) == ("overlapped", "the gradients of an embedding are sparse")
