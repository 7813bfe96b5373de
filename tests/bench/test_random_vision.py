"""What can be made of it without torchvision: config, tokens, and a model that sees what the image processor makes."""

import pytest

from unsloth_accel.bench.conversations import conversations
from unsloth_accel.bench.random_vision import config, tokenizer


pytestmark = pytest.mark.usefixtures("model_libraries")


def test_it_has_the_weights_of_qwen2_5_vl_3b() -> None:
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    original = config("3b")
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(original)
    # https://huggingface.co/Qwen/Qwen2.5-VL-3B-Instruct
    assert sum(parameter.numel() for parameter in model.parameters()) == 3_754_622_976
    assert original.vision_config.fullatt_block_indexes == [7, 15, 23, 31]


def test_a_conversation_holds_one_token_for_its_image() -> None:
    words = tokenizer()
    with_image, text_only = (
        words.apply_chat_template(row["messages"], return_dict=True)["input_ids"]
        for row in conversations(["alpha", "alpha"], [224, None])
    )
    sees = config("tiny")
    around = [sees.vision_start_token_id, sees.image_token_id, sees.vision_end_token_id]
    at = with_image.index(sees.image_token_id)
    assert with_image[at - 1 : at + 2] == around
    assert [token for token in with_image if token not in around] == text_only
    assert words.decode(text_only) == (
        "<|im_start|>user\nthe model of<|im_end|>\n<|im_start|>assistant\nalpha<|im_end|>\n"
    )


def test_the_tiny_one_learns_from_an_image() -> None:
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessorPil

    sees = config("tiny")
    model = Qwen2_5_VLForConditionalGeneration(sees)
    (row,) = conversations(["alpha beta"], [224])
    seen = Qwen2VLImageProcessorPil()(row["messages"][0]["content"][0]["image"], return_tensors="pt")
    ids = tokenizer().apply_chat_template(row["messages"], return_dict=True)["input_ids"]
    at = ids.index(sees.image_token_id)
    ids = torch.tensor([[*ids[:at], *[sees.image_token_id] * 64, *ids[at + 1 :]]])
    model(input_ids=ids, labels=ids, mm_token_type_ids=(ids == sees.image_token_id).long(), **seen).loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.model.visual.patch_embed.parameters())
