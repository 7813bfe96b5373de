"""One attention launch per layer for packed rows on torch 2.11, where Unsloth would loop over the documents."""

import functools
import importlib
import inspect
from typing import Any

from ..imports import load_unsloth
from ..patching import Undo, replace_attribute
from .fix import Fix, Verdict


def probe(model: Any) -> Verdict:
    """Unsloth uses torch's varlen kernel only where it takes `enable_gqa`, which it does since torch 2.12."""
    import torch

    if not torch.cuda.is_available():
        return Verdict(False, "no GPU")
    if torch.cuda.get_device_capability()[0] < 8:
        return Verdict(False, "torch's varlen kernel needs compute capability 8.0")
    dispatch = _dispatch()
    if dispatch.HAS_FLASH_ATTENTION or dispatch.HAS_XFORMERS:
        return Verdict(False, "flash-attn or xformers packs documents in one launch")
    if "enable_gqa" in inspect.signature(_varlen_attn()).parameters:
        return Verdict(False, f"torch {torch.__version__} packs documents in one launch")
    return Verdict(True, f"torch {torch.__version__} launches attention for each document of a packed row by itself")


def apply(model: Any) -> Undo:
    """Gives Unsloth a varlen kernel that expands grouped heads itself."""
    return replace_attribute(_dispatch(), "_TORCH_VARLEN_ATTN", varlen_with_grouped_heads)


def varlen_with_grouped_heads(query: Any, key: Any, value: Any, *args: Any, enable_gqa: bool, **kwargs: Any) -> Any:
    """torch's `varlen_attn`, for fewer key and value heads than query heads.

    Args:
        query (`torch.Tensor`): Of shape `(tokens, heads, head_dim)`.
        key (`torch.Tensor`): Of shape `(tokens, key_value_heads, head_dim)`.
        value (`torch.Tensor`): As `key`.
        args: As of `varlen_attn`.
        enable_gqa (`bool`): Whether there are fewer key and value heads.
        kwargs: As of `varlen_attn`.

    Returns:
        `torch.Tensor`: Of the shape of `query`.
    """
    if enable_gqa:
        groups = query.shape[1] // key.shape[1]
        key, value = (heads.repeat_interleave(groups, dim=1) for heads in (key, value))
    return _varlen_attn()(query, key, value, *args, **kwargs)


def _dispatch() -> Any:
    load_unsloth()
    return importlib.import_module("unsloth.utils.attention_dispatch")


@functools.cache
def _varlen_attn() -> Any:
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn


FIX = Fix(
    name="packed_attention",
    symptom="On rows of uneven length the GPUs idle: as slow as with full rows, although half the tokens are there.",
    remedy="One varlen launch per layer, grouped heads expanded; the same losses.",
    upstream="https://github.com/unslothai/unsloth/blob/main/unsloth/utils/attention_dispatch.py",
    until="torch 2.12",
    probe=probe,
    apply=apply,
)
