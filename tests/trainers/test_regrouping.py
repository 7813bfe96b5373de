"""Models whose rows depend on the length of their batch are known by their config; trainers: test_planned_steps.py."""

import inspect
from types import SimpleNamespace
from typing import Any

import pytest

from unsloth_accel.trainers.regrouping import SEPARATING, rope_by_length, why_not_regrouped


BASE = {"rope_theta": 10000.0}
DYNAMIC = {**BASE, "rope_type": "dynamic", "factor": 2.0}
HALF_HEAD = [1.0] * 48  # of Phi3Config()
LONG = {
    **BASE,
    "rope_type": "longrope",
    "short_factor": HALF_HEAD,
    "long_factor": HALF_HEAD,
    "original_max_position_embeddings": 4096,
}
LLAMA3 = {
    **BASE,
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize(
    ("name", "options", "kind"),
    [
        ("LlamaConfig", {}, ""),
        ("LlamaConfig", {"rope_parameters": LLAMA3}, ""),
        ("LlamaConfig", {"rope_parameters": DYNAMIC}, "dynamic"),
        ("Phi3Config", {"rope_parameters": LONG}, "longrope"),
        ("GPT2Config", {}, ""),  # no RoPE
        ("Gemma3TextConfig", {}, ""),
        # Each kind of layer has its own.
        ("Gemma3TextConfig", {"rope_parameters": {"full_attention": DYNAMIC, "sliding_attention": BASE}}, "dynamic"),
        ("Gemma3Config", {"text_config": {"rope_parameters": {"full_attention": DYNAMIC}}}, "dynamic"),
    ],
)
@pytest.mark.usefixtures("model_libraries")
def test_rope_by_length_is_read_from_the_config(name: str, options: dict[str, Any], kind: str) -> None:
    import transformers

    assert rope_by_length(getattr(transformers, name)(**options)) == kind


# Of each config what it has of these.
TINY: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
TINY |= {"num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1}
TINY |= {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
TINY |= {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}


def difference_beside_another(kind: str) -> float:
    """How far a document's logits are from its own where another lies before it, relative to them."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    of_class: Any = type(AutoConfig.for_model(kind))  # whose properties cannot be set
    known = {name: size for name, size in TINY.items() if name in inspect.signature(of_class).parameters}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(of_class(**known), attn_implementation="eager").eval()
    first, second = torch.arange(3, 9), torch.arange(20, 28)
    both, positions = torch.cat([first, second])[None], torch.cat([torch.arange(6), torch.arange(8)])[None]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5 if parameter.dim() > 1 else 1)  # as they are drawn, attention is about even
        alone = model(input_ids=second[None], position_ids=positions[:, 6:], use_cache=False).logits
        beside = model(input_ids=both, position_ids=positions, use_cache=False).logits[:, 6:]
    return float((alone - beside).norm() / alone.norm())


@pytest.mark.usefixtures("model_libraries")
def test_families_that_are_known_to_keep_documents_apart_do() -> None:
    differences = {kind: difference_beside_another(kind) for kind in sorted(SEPARATING)}
    assert {kind: value for kind, value in differences.items() if value > 1e-4} == {}
    assert min(difference_beside_another(kind) for kind in ("falcon", "opt", "mamba")) > 0.1


@pytest.mark.usefixtures("model_libraries")
@pytest.mark.parametrize(
    ("model", "options", "reason"),
    [
        ("llama", {"per_device_train_batch_size": 1}, ""),
        ("falcon", {"per_device_train_batch_size": 1}, "nothing shows that 'falcon' keeps two side by side apart"),
        ("falcon", {"per_device_train_batch_size": 2}, ""),  # Unsloth lets it, so there are two as it is
        ("falcon", {"per_device_train_batch_size": 1, "padding_free": False}, ""),
        ("llama4_text", {}, "chunks of attention are counted from where a row begins"),
        ("llama", {"pad_to_multiple_of": 8}, "`pad_to_multiple_of` puts padding behind the documents of each"),
        ("llama", {"pad_to_multiple_of": 8, "padding_free": False}, ""),
        ("llama", {"optim": "galore_adamw_layerwise"}, "galore_adamw_layerwise updates the weights in each backward"),
    ],
)
def test_documents_are_put_together_where_they_stay_apart(model: str, options: dict[str, Any], reason: str) -> None:
    from transformers import AutoConfig

    arguments: dict[str, Any] = {"packing": False, "padding_free": True, "pad_to_multiple_of": None}
    arguments |= {"per_device_train_batch_size": 2, "neftune_noise_alpha": None, "optim": "adamw_torch", **options}
    trainer = SimpleNamespace(
        args=SimpleNamespace(**arguments),
        data_collator=None,
        label_smoother=None,
        compute_loss_func=lambda outputs, labels, num_items_in_batch=None: outputs / num_items_in_batch,
        model_accepts_loss_kwargs=True,
        model=SimpleNamespace(config=AutoConfig.for_model(model)),
    )
    assert why_not_regrouped(trainer).endswith(reason)
    assert bool(why_not_regrouped(trainer)) == bool(reason)
