"""Micro-batches that are put together are the same rows: none is lost, none twice, and none sees another."""

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from unsloth_accel.plan.pieces import Together, cut, halve, how_together, make_pieces, merge, tokens_together


WORKERS = Path(__file__).parents[1] / "workers"
# A sum in another order differs by about an epsilon of float32 for each of its roundings.
SAME = 1e-5


def padded(*lengths: int, start: int = 1, **more: Any) -> dict[str, Tensor]:
    """A row of each length; each token is there once."""
    longest = max(lengths)
    mask = torch.tensor([[1] * length + [0] * (longest - length) for length in lengths])
    ids = (torch.arange(mask.numel()).view(mask.shape) + start) * mask
    return {"input_ids": ids, "labels": ids.masked_fill(mask == 0, -100), "attention_mask": mask, **more}


def padding_free(*lengths: int) -> dict[str, Tensor]:
    ids = torch.arange(1, sum(lengths) + 1)[None]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    return {"input_ids": ids, "labels": ids.clone(), "position_ids": positions}


def with_images(*lengths: int, images: int = 1, **more: Any) -> dict[str, Tensor]:
    pixels, grids = torch.full((4 * images, 6), float(images)), torch.full((images, 3), images)
    return padded(*lengths, **more, pixel_values=pixels, image_grid_thw=grids)


def rows(piece: Any) -> list[list[int]]:
    return [[token for token in row if token] for row in merge(piece)["input_ids"].tolist()]


def test_documents_with_padding_behind_them_are_not_cut() -> None:
    """As of `pad_to_multiple_of`: padding is no document, and Unsloth refuses a part without one."""
    two = padding_free(3, 2)
    whole = {**two, "packed_seq_lengths": torch.tensor([3, 2])}
    filled = {name: torch.cat([tensor, torch.zeros(1, 3, dtype=torch.long)], dim=1) for name, tensor in two.items()}
    assert [len(halve(batch)) for batch in (whole, {**filled, "packed_seq_lengths": torch.tensor([3, 2])})] == [2, 1]


@pytest.mark.parametrize(
    ("batches", "together"),
    [
        ([padding_free(3, 4), padding_free(5)], Together.DOCUMENTS),
        ([padded(3, 4), padded(9, 2)], Together.ROWS),
        ([padded(3, 4), with_images(9, 2)], Together.IMAGES),
        ([with_images(3, 4), with_images(9, 2, images=3)], Together.IMAGES),
        ([padding_free(3), padded(3)], Together.NOT),
        ([padded(3, token_type_ids=torch.zeros(1, 3)), padded(3)], Together.NOT),
        ([padded(3, position_ids=torch.zeros(1, 3))], Together.NOT),  # where another is longer, what follows?
        ([padded(3, pixel_values=torch.zeros(1, 3, 9)), padded(3, pixel_values=torch.zeros(1, 3, 8))], Together.NOT),
        ([padded(3, pixel_values=[torch.zeros(3, 9)])], Together.NOT),
        ([["a row of text"]], Together.NOT),
    ],
)
def test_only_known_tensors_are_put_together(batches: list[Any], together: Together) -> None:
    assert how_together(batches) is together


def test_padded_rows_are_filled_up_to_the_longest() -> None:
    piece = [padded(2, 3), padded(5, start=100)]
    assert tokens_together(piece) == 3 * 5
    merged = merge(piece)
    assert merged["input_ids"].tolist() == [[1, 2, 0, 0, 0], [4, 5, 6, 0, 0], [100, 101, 102, 103, 104]]
    assert merged["labels"].tolist() == [
        [1, 2, -100, -100, -100],
        [4, 5, 6, -100, -100],
        [100, 101, 102, 103, 104],
    ]
    assert merged["attention_mask"].sum(1).tolist() == [2, 3, 5]


def test_images_stay_in_the_order_of_their_rows() -> None:
    merged = merge([padded(2), with_images(3, images=2), padded(4), with_images(1, images=1)])
    assert merged["input_ids"].shape == (4, 4)
    assert merged["pixel_values"][:, 0].tolist() == [2.0] * 8 + [1.0] * 4
    assert merged["image_grid_thw"][:, 0].tolist() == [2, 2, 1]


def test_a_micro_batch_with_images_is_never_cut() -> None:
    piece = [padded(9, 9), with_images(3, 4)]
    first, second = cut(piece)
    assert (len(first), len(second)) == (1, 1)
    assert [len(parts) for parts in (cut(first), cut(second))] == [2, 1]


@given(
    lengths=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=3), min_size=1, max_size=6),
    pieces=st.integers(1, 8),
)
def test_each_row_is_in_one_piece_and_each_cut_of_it(lengths: list[list[int]], pieces: int) -> None:
    batches = [padded(*each, start=1000 * number) for number, each in enumerate(lengths, start=1)]
    found = make_pieces(batches, pieces)
    every = sorted(row for batch in batches for row in rows([batch]))
    assert len(found) == min(pieces, len(every))
    assert sorted(row for piece in found for row in rows(piece)) == every
    halves = [half for piece in found for half in cut(piece)]
    assert sorted(row for half in halves for row in rows(half)) == every
    assert sum(map(tokens_together, halves)) <= sum(map(tokens_together, found))


@pytest.mark.parametrize("make", [padded, padding_free])
@given(
    lengths=st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=4), min_size=1, max_size=6),
    pieces=st.integers(1, 8),
    more=st.integers(0, 60),
)
def test_no_piece_is_larger_than_the_plan_says(make: Any, lengths: list[list[int]], pieces: int, more: int) -> None:
    longest = max(map(max, lengths))
    batches = [make(*each) for each in lengths]
    found = make_pieces(batches, pieces, longest + more)
    assert len(found) >= min(pieces, sum(map(len, lengths)))
    # A row of a micro-batch is as wide as the longest beside it was.
    assert max(map(tokens_together, found)) <= longest + more
    assert sum(int((merge(piece)["input_ids"] > 0).sum()) for piece in found) == sum(map(sum, lengths))


def test_pieces_are_no_more_than_the_limit_needs() -> None:
    found = make_pieces([padded(9, 7), padded(90, 2), padded(8, 8), padded(7, 9)], 1, 200)
    assert sorted(map(tokens_together, found)) == [6 * 9, 2 * 90]


@pytest.mark.parametrize("family", ["qwen2_5_vl", "gemma3"])
@pytest.mark.usefixtures("model_libraries")
def test_rows_with_images_train_together_what_they_train_apart(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(WORKERS))
    model_families = import_module("model_families")
    tokenizer = model_families.make_tokenizer(family)
    model = model_families.make_model(family, tokenizer)
    texts = list(enumerate(model_families.texts()))
    batches = [model_families.stock_batch(family, tokenizer, texts[at : at + 2]) for at in (0, 2, 6, 8, 10)]
    labelled = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)

    def train(pieces: list[Any]) -> tuple[float, list[Tensor]]:
        """The loss of the step, and the gradients of tower and language model."""
        model.zero_grad()
        losses = [model(**merge(piece), num_items_in_batch=labelled).loss for piece in pieces]
        torch.stack(losses).sum().backward()
        gradients: dict[bool, list[Tensor]] = {True: [], False: []}
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                gradients["visi" in name or "visual" in name].append(parameter.grad.reshape(-1))
        return float(torch.stack(losses).sum().detach()), [torch.cat(part) for part in gradients.values()]

    loss, gradients = train([[batch] for batch in batches])
    for pieces in (1, 2):
        its_loss, its_gradients = train(make_pieces(batches, pieces))
        assert its_loss == pytest.approx(loss, rel=SAME)
        # Some are zero but for their roundings: what shifts all keys alike changes no attention.
        for ours, theirs in zip(its_gradients, gradients, strict=True):
            assert (ours - theirs).abs().max() <= SAME * theirs.abs().max()
