"""Saves a Llama of random weights in bf16 and a small tokenizer: `python benchmarks/random_llama.py 3b FOLDER`.

Speed and memory do not depend on what the weights are. The shapes are those of Llama 3.2 (1b, 3b) and 3.1 (8b).
"""

import sys

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


# hidden size, intermediate size, layers, heads; 8 key and value heads and 128256 tokens in all of them
SHAPES = {"1b": (2048, 8192, 16, 32), "3b": (3072, 8192, 28, 24), "8b": (4096, 14336, 32, 32)}


def config(size: str) -> LlamaConfig:
    hidden, intermediate, layers, heads = SHAPES[size]
    return LlamaConfig(
        vocab_size=128256,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        max_position_embeddings=8192,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )


def main(size: str, folder: str) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(special_tokens=["<pad>", "<s>", "</s>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["alpha beta gamma the a of tensor rank gradient batch loss model"], trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=8192
    ).save_pretrained(folder)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM(config(size))
    model.save_pretrained(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
