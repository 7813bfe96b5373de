"""Models whose rows depend on the length of their batch are known by their config; trainers: test_planned_steps.py."""

from typing import Any

import pytest

from unsloth_accel.trainers.regrouping import rope_by_length


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
