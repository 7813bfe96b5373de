"""The operations of a token, against those that torch counts in a real model."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from unsloth_accel import ConfigurationError
from unsloth_accel.metrics.flops import TokenFlops


pytestmark = pytest.mark.usefixtures("model_libraries")

SIZES: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 96,
}
# Of a token: its position times each of the frequencies, half a head of them.
ROTARY_FLOPS = SIZES["head_dim"]
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def llama(**options: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(**SIZES, **options))
    model.set_attn_implementation("eager")  # torch counts what other kernels do on some machines only
    return model


def lora(model: Any, **options: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    model.enable_input_require_grads()  # as Unsloth does: gradients reach the first layer, too
    return get_peft_model(model, LoraConfig(r=4, target_modules=LINEAR, **options))


def counted(model: nn.Module) -> float:
    """What torch counts for a token in forward and backward in products with weights.

    Attention is what grows with the row's length, and with that goes out.
    """
    rows = {}
    for tokens in (32, 64):
        ids = torch.zeros(1, tokens, dtype=torch.long)
        with FlopCounterMode(display=False) as counter:
            model(input_ids=ids, labels=ids).loss.backward()
        rows[tokens] = counter.get_total_flops()
    square = (rows[64] - 2 * rows[32]) / (64**2 - 2 * 32**2)
    return float((rows[32] - square * 32**2) / 32 - ROTARY_FLOPS)


def adapter_flops(model: nn.Module) -> int:
    """Forward, gradients of the activations and of the weights."""
    return 6 * sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)


@pytest.mark.parametrize("tied", [False, True])
def test_full_finetuning(tied: bool) -> None:
    model = llama(tie_word_embeddings=tied)
    assert TokenFlops.from_model(model).model == counted(model)


def test_lora() -> None:
    model = lora(llama())
    weights = sum(p.numel() for name, p in model.named_parameters() if p.dim() > 1 and "lora_" not in name)
    without_embedding = weights - SIZES["vocab_size"] * SIZES["hidden_size"]
    assert TokenFlops.from_model(model).model == counted(model) - adapter_flops(model) == 4 * without_embedding


@pytest.mark.parametrize("trained", ["modules_to_save", "target_modules"])
def test_lora_and_the_head(trained: str) -> None:
    if trained == "modules_to_save":
        model = lora(llama(), modules_to_save=["lm_head", "embed_tokens"])
    else:
        model = lora(llama())
        model.get_output_embeddings().weight.requires_grad_(True)
    assert TokenFlops.from_model(model).model == counted(model) - adapter_flops(model)
    head = SIZES["vocab_size"] * SIZES["hidden_size"]
    assert TokenFlops.from_model(model).model == TokenFlops.from_model(lora(llama())).model + 2 * head


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_what_is_recomputed(kept: int) -> None:
    from unsloth_accel.plan.layers import keep_layers

    model = lora(llama())
    forward_and_backward = counted(model)
    # As Unsloth's own checkpointing; the other kind stops when it has what backward asks for.
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    model.train()
    keep_layers(model, kept)
    adapters = adapter_flops(model) / 3 * (1 - kept / 4)
    recomputed = counted(model) - forward_and_backward - adapters
    assert TokenFlops.from_model(model).recomputed * (1 - kept / 4) == recomputed


def test_a_quantised_layer_counts_as_what_it_stands_for() -> None:
    from bitsandbytes.nn import modules

    linear_4bit: Any = modules.Linear4bit
    model = llama()
    expected = TokenFlops.from_model(lora(llama())).model
    for layer in model.model.layers:
        outputs, inputs = layer.mlp.up_proj.weight.shape
        layer.mlp.up_proj = linear_4bit(inputs, outputs, bias=False)
        layer.mlp.up_proj.weight.data = torch.zeros(inputs * outputs // 2, 1, dtype=torch.uint8)  # two in a byte
    assert TokenFlops.from_model(lora(model)).model == expected


@pytest.mark.parametrize(
    ("name", "sizes", "reason"),
    [
        ("Mixtral", {"num_local_experts": 2}, "only dense decoders"),
        ("Bert", {}, "its linear layers hold"),
        ("Qwen2ForReward", {}, "its linear layers hold"),
    ],
)
def test_models_unlike_a_dense_decoder_are_not_counted(name: str, sizes: dict[str, Any], reason: str) -> None:
    import transformers

    small = {key: value for key, value in SIZES.items() if key not in ("head_dim",)} | sizes
    with torch.device("meta"):
        if name == "Mixtral":
            model: Any = transformers.MixtralForCausalLM(transformers.MixtralConfig(**small))
        elif name == "Bert":
            model = transformers.BertForMaskedLM(transformers.BertConfig(**small))
        else:
            model = transformers.Qwen2ForSequenceClassification(transformers.Qwen2Config(**small))
    with pytest.raises(ConfigurationError, match=reason):
        TokenFlops.from_model(model)


def test_a_model_of_ones_own_is_not_counted() -> None:
    with pytest.raises(ConfigurationError, match="a Linear has no config"):
        TokenFlops.from_model(nn.Linear(2, 2))
