"""Puts micro-batches of a step together: documents side by side, or padded rows one below the other."""

from collections.abc import Mapping, Sequence
from enum import IntEnum
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from .balance import longest_first
from .empty_batches import IGNORED


# What Unsloth's and TRL's padding-free collators give, and the dimension along which documents lie.
_DIMENSIONS = {"input_ids": 1, "labels": 1, "position_ids": 1, "packed_seq_lengths": 0}
_NEEDED = {"input_ids", "labels", "position_ids"}
# What collators give of padded rows, and what a shorter row is filled up with: at its end, where neither the mask nor
# causal attention lets it be seen.
_ROWS = {"input_ids": 0, "labels": IGNORED, "attention_mask": 0, "token_type_ids": 0, "mm_token_type_ids": 0}
_PADDED = {"input_ids", "labels", "attention_mask"}
# The patches or images of all rows, one below the other; the place holders in the rows say which belong to whom.
_IMAGES = {"pixel_values", "image_grid_thw"}

Batch = Mapping[str, Any]
Piece = Sequence[Batch]  # micro-batches that are computed as one


class Together(IntEnum):
    """How the micro-batches of a step can be put together, and what of it is never cut; more freedom is more."""

    NOT = 0
    IMAGES = 1  # padded rows and their images: no micro-batch is cut
    ROWS = 2  # padded rows: no row is cut
    DOCUMENTS = 3  # without padding: no document is cut


def how_together(batches: Sequence[Any]) -> Together:
    """How micro-batches can be put together. It looks at names and shapes, so nothing waits for the device.

    Args:
        batches (`Sequence`): What a collator made.
    """
    if all(map(is_padding_free, batches)):
        return Together.DOCUMENTS
    if not all(map(_is_padded, batches)) or not _have_one_form(batches):
        return Together.NOT
    return Together.IMAGES if any(map(_has_images, batches)) else Together.ROWS


def is_padding_free(batch: Any) -> bool:
    """Whether a batch is one row of documents, whose positions tell them apart, and nothing else.

    Args:
        batch: What a collator made.
    """
    if not isinstance(batch, Mapping) or not _NEEDED <= batch.keys() <= _DIMENSIONS.keys():
        return False
    rows = (batch[name] for name in _NEEDED)
    return all(isinstance(row, Tensor) and row.dim() == 2 and row.shape[0] == 1 for row in rows)


def _is_padded(batch: Any) -> bool:
    """Whether a batch is padded rows, perhaps with their images, and nothing else."""
    if not isinstance(batch, Mapping) or not _PADDED <= batch.keys() <= _ROWS.keys() | _IMAGES:
        return False
    if not all(isinstance(tensor, Tensor) for tensor in batch.values()):
        return False
    shapes = {tuple(batch[name].shape) for name in batch.keys() & _ROWS.keys()}
    return len(shapes) == 1 and len(shapes.pop()) == 2


def _has_images(batch: Batch) -> bool:
    return bool(batch.keys() & _IMAGES)


def _have_one_form(batches: Sequence[Batch]) -> bool:
    """Whether rows have the same tensors everywhere, and images the same form wherever there are some."""
    of_rows = {frozenset(batch.keys() & _ROWS.keys()) for batch in batches}
    of_images = {
        tuple((name, batch[name].dtype, batch[name].shape[1:]) for name in sorted(batch.keys() & _IMAGES))
        for batch in batches
        if _has_images(batch)
    }
    return len(of_rows) == 1 and len(of_images) <= 1


def tokens_together(piece: Piece) -> int:
    """The tokens of micro-batches as one batch: of rows that are padded, as many as the longest has in each.

    Args:
        piece (`Sequence[Mapping[str, torch.Tensor]]`): Micro-batches that can be put together, or one.
    """
    if is_padding_free(piece[0]):
        return sum(_width(batch) for batch in piece)
    return sum(int(batch["input_ids"].shape[0]) for batch in piece) * max(map(_width, piece))


def make_pieces(batches: Sequence[Batch], pieces: int, tokens: int | None = None) -> list[Piece]:
    """Puts micro-batches together, about as many tokens in each piece: padded ones with others of their length.

    Args:
        batches (`Sequence[Mapping[str, torch.Tensor]]`): Of shape `[rows, tokens]`; they can be put together.
        pieces (`int`): How many to make.
        tokens (`int`, *optional*): The most tokens of a piece, padding included; more pieces are made to keep to it.

    Returns:
        `list[Sequence[Mapping[str, torch.Tensor]]]`: The micro-batches of each piece. Only what is never cut can have
        more than `tokens`, or make them fewer than `pieces`.
    """
    given = sum(int(batch["input_ids"].numel()) for batch in batches)
    count = max(pieces, -(-given // tokens) if tokens else 1)
    return _cut_down(_group(batches, count), count, tokens)


def _group(batches: Sequence[Batch], pieces: int) -> list[Piece]:
    pieces = min(pieces, len(batches))
    if is_padding_free(batches[0]):
        return [[batches[index] for index in part] for part in longest_first(list(map(_width, batches)), pieces)]
    ordered = sorted(batches, key=_width)
    return [ordered[start:end] for start, end in pairwise(_cuts(ordered, pieces))]


def _cut_down(pieces: list[Piece], count: int, tokens: int | None) -> list[Piece]:
    """Cuts the largest until there are `count` and none has more than `tokens`."""
    whole: list[Piece] = []  # what is never cut
    while pieces:
        pieces.sort(key=tokens_together)
        fits = tokens is None or tokens_together(pieces[-1]) <= tokens
        if fits and len(whole) + len(pieces) >= count:
            break
        halves = cut(pieces.pop())
        (pieces if len(halves) > 1 else whole).extend(halves)
    return [*whole, *pieces]


def merge(piece: Piece) -> Batch:
    """One batch of several micro-batches.

    Args:
        piece (`Sequence[Mapping[str, torch.Tensor]]`): Micro-batches that can be put together, or any one.

    Returns:
        `Mapping[str, torch.Tensor]`: `[1, tokens]` without padding, else `[rows, tokens of the longest]`.
    """
    if len(piece) == 1:
        return piece[0]
    return _side_by_side(piece) if is_padding_free(piece[0]) else _one_below_the_other(piece)


def _side_by_side(piece: Piece) -> dict[str, Tensor]:
    first, *others = piece
    return {
        name: torch.cat([first[name], *(_of_a_later_batch(name, batch) for batch in others)], dim=_DIMENSIONS[name])
        for name in first
    }


def _of_a_later_batch(name: str, batch: Batch) -> Tensor:
    """A batch's first token has nothing before it to be predicted from; behind another batch it gets no target."""
    tensor: Tensor = batch[name]
    if name != "labels":
        return tensor
    labels = tensor.clone()
    labels[:, 0] = IGNORED
    return labels


def _one_below_the_other(piece: Piece) -> dict[str, Tensor]:
    longest = max(map(_width, piece))
    names = dict.fromkeys(name for batch in piece for name in batch)
    return {
        name: torch.cat([_filled_up(name, batch[name], longest) for batch in piece if name in batch]) for name in names
    }


def _filled_up(name: str, tensor: Tensor, longest: int) -> Tensor:
    if name in _IMAGES:
        return tensor
    return nn.functional.pad(tensor, (0, longest - tensor.shape[1]), value=_ROWS[name])


def _width(batch: Batch) -> int:
    return int(batch["input_ids"].shape[1])


def _cuts(batches: Sequence[Batch], pieces: int) -> list[int]:
    """Where the pieces begin and end: each behind the batch at which its share of the tokens is reached."""
    tokens = [int(batch["input_ids"].numel()) for batch in batches]
    total, reached, cuts = sum(tokens), 0, [0]
    for index, count in enumerate(tokens, start=1):
        reached += count
        left_to_cut, batches_left = pieces - len(cuts), len(batches) - index
        if left_to_cut and (reached * pieces >= len(cuts) * total or batches_left == left_to_cut):
            cuts.append(index)
    return [*cuts, len(batches)]


def cut(piece: Piece) -> list[Piece]:
    """Cuts a piece about in its middle: between micro-batches, or if it is one, as [`halve`] does.

    Args:
        piece (`Sequence[Mapping[str, torch.Tensor]]`): Its micro-batches.

    Returns:
        `list[Sequence[Mapping[str, torch.Tensor]]]`: Two pieces, or one that is never cut.
    """
    if len(piece) > 1:
        _, middle, _ = _cuts(piece, 2)
        return [piece[:middle], piece[middle:]]
    return [[half] for half in halve(piece[0])]


def halve(batch: Batch) -> list[Batch]:
    """Cuts a batch between two documents or rows, about in its middle; what has parts of another kind stays as it is.

    Of a padding-free batch it waits for the device, which knows where the documents begin.

    Args:
        batch (`Mapping[str, torch.Tensor]`): What a collator made.

    Returns:
        `list[Mapping[str, torch.Tensor]]`: Two batches, or one.
    """
    if is_padding_free(batch):
        return _halve_documents(batch)
    return _halve_rows(batch) if _is_padded(batch) and not _has_images(batch) else [batch]


def _halve_rows(batch: Batch) -> list[Batch]:
    rows = batch["input_ids"].shape[0]
    parts = [slice(0, rows // 2), slice(rows // 2, None)] if rows > 1 else [slice(None)]
    return [{name: value[part] for name, value in batch.items()} for part in parts]


def _halve_documents(batch: Batch) -> list[Batch]:
    tokens = _width(batch)
    lengths = batch.get("packed_seq_lengths")
    if lengths is not None and int(lengths.sum()) < tokens:  # `pad_to_multiple_of` puts padding behind the documents
        return [batch]
    starts = [start for start in (batch["position_ids"][0] == 0).nonzero()[:, 0].tolist() if 0 < start < tokens]
    if not starts:
        return [batch]
    middle = min(starts, key=lambda start: abs(2 * start - tokens))
    documents = starts.index(middle) + 1
    return [
        _part(batch, slice(0, middle), slice(0, documents)),
        _part(batch, slice(middle, None), slice(documents, None)),
    ]


def _part(batch: Batch, tokens: slice, documents: slice) -> Batch:
    return {
        name: value[documents] if name == "packed_seq_lengths" else value[:, tokens] for name, value in batch.items()
    }
