"""Rows and a model for the demo, made in seconds without a network.

The rows follow a rule, so that every answer can be checked: the letters of a phrase, each once, in alphabetical order.
The phrases are cut from the documentation inside every Python. The model has random weights and has read nothing.
"""

import random
import re
from pathlib import Path
from pydoc_data.topics import topics
from string import ascii_lowercase

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


HELD_OUT = 64  # rows for the test


def answer(phrase: str) -> str:
    """`"read a file"` -> `"adefilr"`."""
    return "".join(sorted(set(phrase) - {" "}))


def save_rows(folder: Path) -> None:
    """Writes thousands of rows to train.parquet, and others to test.parquet."""
    folder.mkdir(parents=True, exist_ok=True)
    phrases = _phrases()
    for split, part in (("test", phrases[:HELD_OUT]), ("train", phrases[HELD_OUT:])):
        rows = {"prompt": [f"{phrase}:" for phrase in part], "completion": [answer(phrase) for phrase in part]}
        Dataset.from_dict(rows).to_parquet(folder / f"{split}.parquet")


def _phrases() -> list[str]:
    """One to three words that follow each other in a sentence; no phrase twice."""
    draw = random.Random(0)
    found = set()
    for sentence in re.split(r"[.,;:()]|\n\n", "\n\n".join(topics.values()).lower()):
        words = re.findall("[a-z]+", sentence)
        while words:
            count = draw.choice((1, 1, 1, 2, 3))
            found.add(" ".join(words[:count]))
            words = words[count:]
    phrases = sorted(phrase for phrase in found if len(phrase) > 2)
    draw.shuffle(phrases)
    return phrases


def save_small_llama(folder: Path) -> None:
    """Writes a Llama of 0.3 million random weights, and a tokenizer that makes each letter a token."""
    tokens = ["<pad>", "<s>", "</s>", ":", " ", *ascii_lowercase]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=256
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        initializer_range=0.08,  # about 1 / sqrt(hidden_size): LoRA does not change the scale of what it starts from
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
