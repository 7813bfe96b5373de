"""The lengths of the rows of a data set on this machine, tokenised as TRL's SFT trainer does."""

from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigurationError
from ..plan.lengths import IntArray, RowLengths, row_lengths


FORMATS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".arrow": "arrow"}
# The columns that TRL's SFT trainer takes: https://huggingface.co/docs/trl/dataset_formats
COLUMNS = ("input_ids", "messages", "prompt and completion", "text")


def read_lengths(path: str, tokenizer: str, sequence: int) -> RowLengths:
    """Reads the data set and counts the tokens of its rows.

    Args:
        path (`str`): A `.jsonl`, `.json`, `.parquet` or `.arrow` file, or a folder of `Dataset.save_to_disk`.
        tokenizer (`str`): Where the model's tokenizer is. Not looked at where the rows have `input_ids`.
        sequence (`int`): What a row is cut to.

    Returns:
        `RowLengths`: The tokens of each row.

    Raises:
        ConfigurationError: If there is no such data set, or no column that TRL would tokenise.
    """
    dataset = _load(Path(path))
    if "input_ids" in dataset.column_names:
        lengths, reason = row_lengths(dataset, sequence)
        if lengths is None:
            raise ConfigurationError(f"`--dataset` {path}: {reason}.")
        return lengths
    counts = _count(dataset, path, tokenizer)
    # TRL drops rows of which no token is left to learn, after they were cut.
    kept = counts["tokens"][counts["prompt"] < sequence]
    return RowLengths.of_documents(np.minimum(kept, sequence))


def _load(path: Path) -> Any:
    import datasets

    if path.is_file() and path.suffix in FORMATS:
        return datasets.load_dataset(FORMATS[path.suffix], data_files=str(path), split="train")
    if (path / "state.json").is_file():
        return datasets.load_from_disk(str(path))
    raise ConfigurationError(
        f"`--dataset` must be a {', '.join(FORMATS)} file or a folder of `Dataset.save_to_disk`, got {str(path)!r}."
    )


def _count(dataset: Any, path: str, tokenizer: str) -> dict[str, IntArray]:
    from transformers import AutoTokenizer

    columns = set(dataset.column_names)
    if not ({"messages"} <= columns or {"prompt", "completion"} <= columns or {"text"} <= columns):
        raise ConfigurationError(
            f"`--dataset` needs a column of {', '.join(COLUMNS)}; {path} has {', '.join(dataset.column_names)}."
        )
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    counts = dataset.map(
        _count_rows,
        fn_kwargs={"tokenizer": loaded},
        batched=True,
        remove_columns=dataset.column_names,
        desc="Counting tokens",
    )
    return {name: np.asarray(counts.with_format("numpy")[name], np.int64) for name in ("tokens", "prompt")}


def _count_rows(batch: dict[str, list[Any]], tokenizer: Any) -> dict[str, list[int]]:
    """As TRL does: conversations through the chat template, text with an end-of-sequence token behind it.

    `prompt` is what of the tokens is not learnt.
    """
    if "messages" in batch:
        rows = _from_template(tokenizer, batch["messages"])
        return {"tokens": rows, "prompt": [0] * len(rows)}
    if "text" in batch:
        rows = tokenizer(batch["text"])["input_ids"]
        prompts = [0] * len(rows)
    else:
        both = [prompt + completion for prompt, completion in zip(batch["prompt"], batch["completion"], strict=True)]
        if not isinstance(both[0], str):
            prompts = _from_template(tokenizer, batch["prompt"], add_generation_prompt=True)
            return {"tokens": _from_template(tokenizer, both), "prompt": prompts}
        rows = tokenizer(both)["input_ids"]
        prompts = list(map(len, tokenizer(batch["prompt"])["input_ids"]))
    end = tokenizer.eos_token_id
    return {"tokens": [len(row) + (row[-1:] != [end]) for row in rows], "prompt": prompts}


def _from_template(tokenizer: Any, conversations: list[Any], **options: bool) -> list[int]:
    rows = tokenizer.apply_chat_template(conversations, tokenize=True, return_dict=True, **options)["input_ids"]
    return list(map(len, rows))
