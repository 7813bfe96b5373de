"""Puts micro-batches of a step together: documents side by side in one padding-free batch."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor


# What Unsloth's and TRL's padding-free collators give, and the dimension along which documents lie.
_DIMENSIONS = {"input_ids": 1, "labels": 1, "position_ids": 1, "packed_seq_lengths": 0}
_NEEDED = {"input_ids", "labels", "position_ids"}
# What TRL's collator gives of padded rows of text.
_PADDED = {"input_ids", "labels", "attention_mask"}
_IGNORED = -100

Batch = Mapping[str, Any]


def is_padding_free(batch: Any) -> bool:
    """Whether a batch is one row of documents, whose positions tell them apart, and nothing else.

    Args:
        batch: What a collator made.
    """
    if not isinstance(batch, Mapping) or not _NEEDED <= batch.keys() <= _DIMENSIONS.keys():
        return False
    rows = (batch[name] for name in _NEEDED)
    return all(isinstance(row, Tensor) and row.dim() == 2 and row.shape[0] == 1 for row in rows)


def group(batches: Sequence[Batch], pieces: int) -> list[dict[str, Tensor]]:
    """Puts consecutive micro-batches together, about as many tokens in each piece.

    Args:
        batches (`Sequence[Mapping[str, torch.Tensor]]`): Padding-free batches of shape `[1, tokens]`.
        pieces (`int`): How many to make; at most one a batch.

    Returns:
        `list[dict[str, torch.Tensor]]`: The pieces, each of shape `[1, tokens]`.
    """
    return [merge(batches[start:end]) for start, end in pairwise(_cuts(batches, min(pieces, len(batches))))]


def merge(batches: Sequence[Batch]) -> dict[str, Tensor]:
    """One batch of the documents of several, each of shape `[1, tokens]`."""
    first, *others = batches
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
    labels[:, 0] = _IGNORED
    return labels


def _cuts(batches: Sequence[Batch], pieces: int) -> list[int]:
    """Where the pieces begin and end: each behind the batch at which its share of the tokens is reached."""
    tokens = [int(batch["input_ids"].shape[1]) for batch in batches]
    total, reached, cuts = sum(tokens), 0, [0]
    for index, count in enumerate(tokens, start=1):
        reached += count
        left_to_cut, batches_left = pieces - len(cuts), len(batches) - index
        if left_to_cut and (reached * pieces >= len(cuts) * total or batches_left == left_to_cut):
            cuts.append(index)
    return [*cuts, len(batches)]


def can_be_cut(batch: Any) -> bool:
    """Whether a batch is padding-free, or padded rows of text and nothing else, so that its parts are known.

    Args:
        batch: What a collator made.
    """
    if is_padding_free(batch):
        return True
    if not isinstance(batch, Mapping) or batch.keys() != _PADDED:
        return False
    return len({tuple(tensor.shape) for tensor in batch.values()}) == 1


def halve(piece: Batch) -> list[dict[str, Tensor]]:
    """Cuts a batch between two documents or rows, about in its middle; one alone stays as it is.

    Of a padding-free batch it waits for the device, which knows where the documents begin.

    Args:
        piece (`Mapping[str, torch.Tensor]`): A batch; one of which [`can_be_cut`] says no stays as it is, too.

    Returns:
        `list[dict[str, torch.Tensor]]`: Two batches, or one.
    """
    if is_padding_free(piece):
        return _halve_documents(piece)
    return _halve_rows(piece) if can_be_cut(piece) else [dict(piece)]


def _halve_rows(piece: Batch) -> list[dict[str, Tensor]]:
    rows = piece["input_ids"].shape[0]
    parts = [slice(0, rows // 2), slice(rows // 2, None)] if rows > 1 else [slice(None)]
    return [{name: value[part] for name, value in piece.items()} for part in parts]


def _halve_documents(piece: Batch) -> list[dict[str, Tensor]]:
    tokens = piece["input_ids"].shape[1]
    starts = [start for start in (piece["position_ids"][0] == 0).nonzero()[:, 0].tolist() if 0 < start < tokens]
    if not starts:
        return [dict(piece)]
    cut = min(starts, key=lambda start: abs(2 * start - tokens))
    documents = starts.index(cut) + 1
    return [_part(piece, slice(0, cut), slice(0, documents)), _part(piece, slice(cut, None), slice(documents, None))]


def _part(piece: Batch, tokens: slice, documents: slice) -> dict[str, Tensor]:
    return {
        name: value[documents] if name == "packed_seq_lengths" else value[:, tokens] for name, value in piece.items()
    }
