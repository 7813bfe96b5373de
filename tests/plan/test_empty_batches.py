"""A rank without a row computes one that counts nothing."""

import math
from collections.abc import Callable
from typing import Any

import datasets
import pytest
import torch
from torch.utils.data import DataLoader

from unsloth_accel import ConfigurationError
from unsloth_accel.plan.empty_batches import FillEmptyBatches


pytestmark = pytest.mark.usefixtures("model_libraries")

ROWS = datasets.Dataset.from_dict({"input_ids": [[5, 6, 7], [8, 9]]})


def trl_collator(padding_free: bool = False) -> Callable[[list[Any]], Any]:
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    collator: Callable[[list[Any]], Any] = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=padding_free)
    return collator


def loader(dataset: Any, collate_fn: Callable[[list[Any]], Any], workers: int = 0) -> DataLoader[Any]:
    return DataLoader(
        dataset, batch_sampler=[[0, 1], []], collate_fn=FillEmptyBatches(collate_fn, ROWS[1]), num_workers=workers
    )


@pytest.mark.parametrize("padding_free", [False, True], ids=["padded", "padding-free"])
@pytest.mark.parametrize("dataset", [ROWS, list(ROWS)], ids=["datasets", "list"])
def test_no_rows_become_one_without_labels(dataset: Any, padding_free: bool) -> None:
    collator = trl_collator(padding_free)
    full, empty = loader(dataset, collator)
    expected = collator([ROWS[0], ROWS[1]])
    assert full.keys() == expected.keys() == empty.keys()
    assert all(torch.equal(full[key], expected[key]) for key in expected)
    assert empty["input_ids"].tolist() == [[8, 9]]
    assert empty["labels"].tolist() == [[-100, -100]]


def test_in_a_worker_process() -> None:
    collator = trl_collator(padding_free=True)
    assert [batch["input_ids"].numel() for batch in loader(ROWS, collator, workers=1)] == [5, 2]


def test_it_adds_nothing_to_loss_and_gradient() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=16)
    model = LlamaForCausalLM(config)
    _, empty = loader(ROWS, trl_collator())
    loss = model(**empty, num_items_in_batch=torch.tensor(3)).loss
    loss.backward()
    assert loss.item() == 0
    assert all(not parameter.grad.any() for parameter in model.parameters() if parameter.grad is not None)
    assert math.isnan(model(**empty).loss.item()), "a mean over no label, for which these batches are not made"


def test_a_collator_that_takes_keys_out_of_its_rows_can_be_called_again() -> None:
    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return {"labels": torch.tensor([row.pop("input_ids") for row in rows])}

    fill = FillEmptyBatches(collate, {"input_ids": [1, 2]})
    assert [fill([])["labels"].tolist() for _ in range(2)] == [[[-100, -100]]] * 2


def test_batches_without_labels_are_refused() -> None:
    fill = FillEmptyBatches(lambda rows: {"chosen": torch.ones(1), "rejected": torch.ones(1)}, {})
    with pytest.raises(ConfigurationError, match=r"`collate_fn` makes batches of chosen, rejected without labels"):
        fill([])
