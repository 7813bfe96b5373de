"""The lengths of the rows of a data set on this machine, tokenised as TRL's SFT trainer does."""

from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigurationError
from ..plan.lengths import RowLengths, row_lengths


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
    return RowLengths.of_documents(np.minimum(_count(dataset, path, tokenizer), sequence))


def _load(path: Path) -> Any:
    import datasets

    if path.is_file() and path.suffix in FORMATS:
        return datasets.load_dataset(FORMATS[path.suffix], data_files=str(path), split="train")
    if (path / "state.json").is_file():
        return datasets.load_from_disk(str(path))
    raise ConfigurationError(
        f"`--dataset` must be a {', '.join(FORMATS)} file or a folder of `Dataset.save_to_disk`, got {str(path)!r}."
    )


def _count(dataset: Any, path: str, tokenizer: str) -> Any:
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
    return np.asarray(counts.with_format("numpy")["tokens"], np.int64)


def _count_rows(batch: dict[str, list[Any]], tokenizer: Any) -> dict[str, list[int]]:
    """As TRL does: conversations through the chat template, text with an end-of-sequence token behind it."""
    if "messages" in batch:
        tokens = tokenizer.apply_chat_template(batch["messages"], tokenize=True, return_dict=True)["input_ids"]
        return {"tokens": [len(row) for row in tokens]}
    if "text" in batch:
        texts = batch["text"]
    else:
        texts = [prompt + completion for prompt, completion in zip(batch["prompt"], batch["completion"], strict=True)]
    end = tokenizer.eos_token_id
    return {"tokens": [len(row) + (row[-1:] != [end]) for row in tokenizer(texts)["input_ids"]]}
