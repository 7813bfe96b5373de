"""The cost of rows, against the operations that torch counts in a real model."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from plan.steps import documents
from unsloth_accel.plan.cost import TOKEN_COST, RowCost
from unsloth_accel.plan.lengths import RowLengths


pytestmark = pytest.mark.usefixtures("model_libraries")

LLAMA_3B = {
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 28,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}


def config_of(name: str, **sizes: Any) -> Any:
    import transformers

    return getattr(transformers, name)(**sizes)


def test_a_3b_llama() -> None:
    cost = RowCost.from_config(config_of("LlamaConfig", **LLAMA_3B))
    assert cost.quadratic / TOKEN_COST == pytest.approx(2.7e-5, abs=0.05e-5)
    assert cost.reason == ""
    assert not cost.padded


def test_the_operations_of_a_model() -> None:
    """What torch counts is a T + b T^2 with the whole square of attention, of which a causal kernel needs half."""
    from transformers import LlamaForCausalLM

    config = config_of(
        "LlamaConfig",
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=96,
    )
    model = LlamaForCausalLM(config)
    model.set_attn_implementation("eager")  # torch counts what other kernels do on some machines only
    flops = []
    for tokens in (64, 128):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(input_ids=torch.zeros(1, tokens, dtype=torch.long))
        flops.append(counter.get_total_flops())
    square = (flops[1] - 2 * flops[0]) / (128**2 - 2 * 64**2)
    linear = (flops[0] - square * 64**2) / 64
    measured = square / 2 / linear
    assert RowCost.from_config(config).quadratic / TOKEN_COST == pytest.approx(measured, rel=1e-3)


def test_of_a_model_with_several_parts_the_text_decoder_counts() -> None:
    config = config_of("Qwen2_5_VLConfig")
    assert RowCost.from_config(config) == RowCost.from_config(config.get_text_config()) != RowCost()


def test_a_layer_with_a_window_has_no_quadratic_term() -> None:
    config = config_of("Gemma3Config").get_text_config()
    every_layer = config_of("Gemma3Config").get_text_config()
    every_layer.layer_types = ["full_attention"] * every_layer.num_hidden_layers
    share = config.layer_types.count("full_attention") / config.num_hidden_layers
    expected = RowCost.from_config(every_layer).quadratic * share
    assert RowCost.from_config(config).quadratic == pytest.approx(expected, abs=1)


def test_the_width_of_a_head_need_not_follow_from_the_hidden_size() -> None:
    narrow, wide = (RowCost.from_config(config_of("Qwen3Config", head_dim=head_dim)) for head_dim in (64, 128))
    assert 1.5 < wide.quadratic / narrow.quadratic < 2


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("MixtralConfig", "`num_experts_per_tok` of a mixtral config"),
        ("PreTrainedConfig", "`num_attention_heads` is None"),
        ("GPT2Config", "`intermediate_size` is None in a gpt2 config"),
    ],
    ids=["experts", "unknown", "no MLP width"],
)
def test_a_config_that_does_not_say(config: str, reason: str) -> None:
    cost = RowCost.from_config(config_of(config), padded=True)
    assert (cost.quadratic, cost.padded) == (0, True)
    assert reason in cost.reason


def test_a_batch_costs_its_rows_or_rows_of_the_longest() -> None:
    lengths = documents([3, 5])
    assert RowCost(quadratic=2).of_rows(lengths).tolist() == [3 * TOKEN_COST + 18, 5 * TOKEN_COST + 50]
    assert RowCost(quadratic=2).of_batch(lengths) == 8 * TOKEN_COST + 68
    assert RowCost(quadratic=2, padded=True).of_batch(lengths) == 2 * (5 * TOKEN_COST + 50)
    assert RowCost(padded=True).of_batch(documents([])) == 0


def test_packed_documents_do_not_attend_to_each_other() -> None:
    packed = RowLengths(np.array([8]), np.array([3**2 + 5**2]))
    assert RowCost(quadratic=2).of_rows(packed).tolist() == [8 * TOKEN_COST + 68]
