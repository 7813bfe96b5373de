"""Real text and a small model for the examples, made in seconds without a network.

The text is this Python's own: each function of the standard library with a docstring becomes an instruction (its
signature) and an answer (its docstring), several thousand rows of naturally uneven length.
"""

import ast
import sysconfig
from pathlib import Path

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


PROMPT = "### Signature:\ndef {name}({arguments})\n\n### Docstring:\n"
END = "</s>"
SKIPPED = {"test", "tests", "idlelib", "lib2to3", "site-packages", "turtledemo"}


def stdlib_rows() -> Dataset:
    """The column `text`: a prompt and its answer, one row for each documented function."""
    library = Path(sysconfig.get_paths()["stdlib"])
    texts = []
    for file in sorted(library.rglob("*.py")):
        if SKIPPED.isdisjoint(file.relative_to(library).parts):
            texts += _documented_functions(file.read_text(encoding="utf-8", errors="ignore"))
    return Dataset.from_dict({"text": texts})


def _documented_functions(source: str) -> list[str]:
    return [
        PROMPT.format(name=node.name, arguments=ast.unparse(node.args)) + docstring + END
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef) and (docstring := ast.get_docstring(node))
    ]


def small_llama(texts: list[str], folder: Path) -> str:
    """Saves a Llama that has read a little English, and a tokenizer trained on `texts`; returns its folder."""
    tokenizer = _train_tokenizer(texts)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    model = _read(LlamaForCausalLM(config), tokenizer, texts)
    model.save_pretrained(folder)
    return str(folder)


def _train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2048,
        special_tokens=["<pad>", "<s>", END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token=END, model_max_length=1024
    )


def _read(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> LlamaForCausalLM:
    """A few seconds of pretraining on the answers alone: LoRA cannot teach words to random weights."""
    answers = "\n".join(text.split("### Docstring:\n")[1] for text in texts)
    tokens = torch.tensor(tokenizer(answers)["input_ids"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(80):
        starts = torch.randint(len(tokens) - 64, (16,))
        batch = torch.stack([tokens[start : start + 64] for start in starts])
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model
