"""Saves a Qwen2.5-VL of random weights and its processor: `python -m unsloth_accel.bench.random_vision 3b FOLDER`.

The shapes are those of Qwen2.5-VL-3B-Instruct, and one that is trained in milliseconds. The processor needs
torchvision.
"""

import sys
from typing import Any

from . import random_llama


# What Qwen2VLImageProcessor makes of images: patches of 14 x 14 pixels, of which 2 x 2 become a token.
_PATCHES: dict[str, Any] = {"patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}
# The decoder's sizes, and the vision tower's.
SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "tiny": (
        {
            "vocab_size": 512,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        },
        {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "fullatt_block_indexes": [1]},
    ),
    "3b": (
        {
            "vocab_size": 151936,
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
        },
        {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "fullatt_block_indexes": [7, 15, 23, 31],
        },
    ),
}
# Qwen's, without the system prompt that it puts in front.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def config(size: str) -> Any:
    """The `Qwen2_5_VLConfig` of a size.

    Args:
        size (`str`): A key of `SHAPES`.

    Returns:
        `transformers.Qwen2_5_VLConfig`: With tied embeddings, and the ids of [`tokenizer`]'s tokens.
    """
    from transformers import Qwen2_5_VLConfig

    text, vision = SHAPES[size]
    words = tokenizer()
    half_a_head = text["hidden_size"] // text["num_attention_heads"] // 2
    sections = [half_a_head // 4, 3 * half_a_head // 8, 3 * half_a_head // 8]  # of time, height and width
    return Qwen2_5_VLConfig(
        text_config={
            **text,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections},
            "pad_token_id": words.pad_token_id,
            "bos_token_id": words.bos_token_id,
            "eos_token_id": words.eos_token_id,
        },
        vision_config={**vision, **_PATCHES, "window_size": 112, "out_hidden_size": text["hidden_size"]},
        tie_word_embeddings=True,
        image_token_id=words.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=words.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=words.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=words.convert_tokens_to_ids("<|vision_end|>"),
    )


def tokenizer() -> Any:
    """That of `random_llama`, with the tokens that Qwen puts around turns and images."""
    words = random_llama.tokenizer()
    around = ["<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    words.add_special_tokens({"eos_token": "<|im_end|>", "extra_special_tokens": around})
    words.chat_template = CHAT_TEMPLATE
    return words


def save(size: str, folder: str) -> None:
    """Writes model and processor.

    Args:
        size (`str`): A key of `SHAPES`.
        folder (`str`): Where to.
    """
    from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor, Qwen2VLImageProcessor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    images, videos = Qwen2VLImageProcessor(), Qwen2VLVideoProcessor()
    processor = Qwen2_5_VLProcessor(images, tokenizer(), videos, chat_template=CHAT_TEMPLATE)
    processor.save_pretrained(folder)
    random_llama.save_model(Qwen2_5_VLForConditionalGeneration, config(size), size, folder)


if __name__ == "__main__":
    save(*sys.argv[1:])
