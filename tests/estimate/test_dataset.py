"""Lengths of local data sets, against what TRL makes of the same rows."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from unsloth_accel import ConfigurationError
from unsloth_accel.estimate.dataset import read_lengths


TEXTS = [f"{'Every rank computes gradients. ' * count}row {count}" for count in (1, 3, 9, 30)]
SEQUENCE = 96
ROWS: dict[str, list[dict[str, Any]]] = {
    "text": [{"text": text} for text in TEXTS],
    "prompt": [{"prompt": text, "completion": " and waits."} for text in TEXTS],
    "turns": [
        {"prompt": [{"role": "user", "content": text}], "completion": [{"role": "assistant", "content": "It waits."}]}
        for text in TEXTS
    ],
    "messages": [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "It waits."}]}
        for text in TEXTS
    ],
}


@pytest.mark.cpu
@pytest.mark.parametrize("kind", ROWS)
def test_rows_have_the_tokens_that_trl_gives_them(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    from unsloth_accel import UnslothAcceleratedSFTTrainer  # isort: skip # imports Unsloth before the others
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig

    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS[kind]))
    trainer = UnslothAcceleratedSFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(tiny_model),
        processing_class=AutoTokenizer.from_pretrained(tiny_model),
        args=SFTConfig(str(tmp_path / "out"), max_length=SEQUENCE, report_to="none", use_cpu=True, bf16=False),
        train_dataset=Dataset.from_list(ROWS[kind]),
    )
    prepared: Any = trainer.train_dataset
    expected = [min(SEQUENCE, len(row)) for row in prepared["input_ids"]]
    assert read_lengths(str(path), str(tiny_model), SEQUENCE).tokens.tolist() == expected
    assert len(expected) == (3 if kind in ("prompt", "turns") else 4), "TRL drops the row whose completion is cut off"
    assert len(set(expected)) > 2, "rows differ"


@pytest.mark.usefixtures("model_libraries")
@pytest.mark.parametrize("kind", ["jsonl", "parquet", "arrow", "folder"])
def test_tokenised_rows_are_read_from_each_format(kind: str, tmp_path: Path) -> None:
    dataset = Dataset.from_dict({"input_ids": [[1] * count for count in (3, 5, 200)]})
    path = tmp_path / f"rows.{kind}"
    if kind == "jsonl":
        dataset.to_json(path)
    elif kind == "parquet":
        dataset.to_parquet(path)
    else:
        dataset.save_to_disk(path)
        path = next(path.glob("*.arrow")) if kind == "arrow" else path
    lengths = read_lengths(str(path), "no tokenizer is asked for", SEQUENCE)
    assert lengths.tokens.tolist() == [3, 5, SEQUENCE]
    assert np.array_equal(lengths.squares, lengths.tokens**2)


@pytest.mark.usefixtures("model_libraries")
def test_what_is_no_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"`--dataset` must be a \.json, .* got '/nowhere/rows.csv'"):
        read_lengths("/nowhere/rows.csv", "", SEQUENCE)
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "?", "answer": "!"}\n')
    with pytest.raises(ConfigurationError, match=r"needs a column of .*text; .*rows.jsonl has question, answer"):
        read_lengths(str(path), "", SEQUENCE)
