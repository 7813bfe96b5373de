"""Saves a Llama of random weights and a small tokenizer: `python -m unsloth_accel.bench.random_llama 3b FOLDER`.

Speed and memory do not depend on what the weights are. The shapes are those of Llama 3.2 (1b, 3b) and 3.1 (8b), and
one that a CPU trains in milliseconds. In bf16, without a GPU the smallest in float32.
"""

import sys
from typing import Any


# hidden size, intermediate size, layers, heads, key and value heads, tokens of the vocabulary
SHAPES = {
    "tiny": (64, 256, 2, 4, 2, 512),
    "1b": (2048, 8192, 16, 32, 8, 128256),
    "3b": (3072, 8192, 28, 24, 8, 128256),
    "8b": (4096, 14336, 32, 32, 8, 128256),
}
WORDS = ["alpha", "beta", "gamma", "the", "a", "of", "tensor", "rank", "gradient", "batch", "loss", "model"]


def config(size: str) -> Any:
    """The `LlamaConfig` of a size.

    Args:
        size (`str`): A key of `SHAPES`.

    Returns:
        `transformers.LlamaConfig`: With untied embeddings.
    """
    from transformers import LlamaConfig

    hidden, intermediate, layers, heads, key_value_heads, vocabulary = SHAPES[size]
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        max_position_embeddings=8192,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )


def tokenizer() -> Any:
    """A byte-level BPE that has a token for each of `WORDS`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        special_tokens=["<pad>", "<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    words.train_from_iterator([" ".join(WORDS)], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=8192
    )


def save(size: str, folder: str) -> None:
    """Writes model and tokenizer.

    Args:
        size (`str`): A key of `SHAPES`.
        folder (`str`): Where to.
    """
    from transformers import LlamaForCausalLM

    tokenizer().save_pretrained(folder)
    save_model(LlamaForCausalLM, config(size), size, folder)


def save_model(model_class: Any, config: Any, size: str, folder: str) -> None:
    """Draws weights on the GPU, if there is one, which takes seconds there and minutes on the host, and writes them.

    Args:
        model_class (`type`): The model's class in transformers.
        config (`PreTrainedConfig`): Its config.
        size (`str`): Its name; `"tiny"` is in float32 without a GPU.
        folder (`str`): Where to.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32 if (device, size) == ("cpu", "tiny") else torch.bfloat16)
    with torch.device(device):
        model = model_class(config)
    model.save_pretrained(folder)


if __name__ == "__main__":
    save(*sys.argv[1:])
