"""How much memory one rank needs for a step, estimated from sizes alone.

The terms follow from what Unsloth's kernels hold and save for a dense decoder on its fast path, in bf16, without
dropout or biases, checkpointed with "unsloth", which keeps the inputs of recomputed layers on the host. Where all
weights are trained Unsloth has no such path: there they follow from transformers' modules, as they are without a
compiler. It is what `torch.cuda.max_memory_allocated` would say; the CUDA context and the fragments of the allocator
come on top.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

from .decoder import DecoderShape


Bits = Literal[4, 8, 16]

GIB = 2**30
BF16, FP32 = 2, 4
# NF4 with double quantisation adds 0.127 bits a weight for its scales (Dettmers et al. 2023, "QLoRA", section 3,
# https://arxiv.org/abs/2305.14314).
WEIGHT_BYTES = {4: 4.127 / 8, 8: 1.0, 16: 2.0}
ADAM_STATES = 2
# Unsloth's fused cross entropy (unsloth_zoo/fused_losses/cross_entropy_loss.py) cuts the tokens into chunks of which
# each stays, at 16 bytes a logit, below half of the free memory and this; multiples of 4 where one is not enough.
LOSS_BUDGET = 4 * GIB
BUDGETED_BYTES_PER_LOGIT = 16
# What a chunk really holds at its peak; measured.
HELD_BYTES_PER_LOGIT = 4


@dataclass(frozen=True)
class MemoryEstimate:
    """What one rank needs, in GiB.

    Args:
        weights (`float`): Of the model, with the buffer that quantised ones are unpacked into.
        adapters (`float`): Of LoRA, 0 where all weights are trained.
        gradients (`float`): Of what is trained.
        optimizer (`float`): The two states of Adam.
        reduction (`float`): What averaging the gradients holds besides them.
        layer (`float`): The activations of one layer that is not recomputed.
        peak (`float`): The most that is held at once: in the loss, in backward, or in the optimizer's step.
    """

    weights: float
    adapters: float
    gradients: float
    optimizer: float
    reduction: float
    layer: float
    peak: float


def estimate_memory(
    shape: DecoderShape,
    tokens: int,
    layers_kept: int = 0,
    bits: Bits = 16,
    lora_rank: int | None = 16,
    reduction: float = 0.0,
    bucketed: bool = False,
) -> MemoryEstimate:
    """Estimates the memory of one rank.

    Args:
        shape (`DecoderShape`):
            The sizes of the model.
        tokens (`int`):
            The tokens of the largest piece, padding included.
        layers_kept (`int`, *optional*, defaults to 0):
            The layers that keep their activations; the others are recomputed.
        bits (`int`, *optional*, defaults to 16):
            The bits of a weight in a linear layer: 4 (QLoRA), 8 or 16. Embedding and head always have 16.
        lora_rank (`int`, *optional*, defaults to 16):
            The rank of float32 adapters on all linear layers. `None`: every weight is trained, in bf16.
        reduction (`float`, *optional*, defaults to 0.0):
            GiB that averaging the gradients holds besides them: as much as they take where they are copied into one
            flat tensor, nothing where they are views of DDP's buckets.
        bucketed (`bool`, *optional*, defaults to `False`):
            Whether the gradients are such views, which stay from step to step; others are there from backward to the
            optimizer's step.

    Returns:
        `MemoryEstimate`: Each part, and the peak.
    """
    full = lora_rank is None
    embeddings = (1 if shape.tied else 2) * shape.head_weights
    weights = BF16 * embeddings + WEIGHT_BYTES[bits] * shape.linear_weights + _unpacked_bytes(shape, bits)
    adapters = 0 if lora_rank is None else FP32 * adapter_weights(shape, lora_rank)
    gradients = BF16 * (embeddings + shape.linear_weights) if full else adapters
    optimizer = ADAM_STATES * gradients
    held = weights + adapters + optimizer + reduction * GIB + (gradients if bucketed else 0)
    layer = tokens * saved_bytes(shape, full)
    # Backward begins with the logits or with the last layer, while there are few gradients, and ends with all of them.
    # Adam with foreach makes temporaries of the size of what it updates.
    loss = _whole_loss_bytes(shape, tokens) if full else _loss_bytes(shape, tokens)
    backward = _backward_bytes(shape, tokens) + (layer if layers_kept < shape.layers else 0)
    ends = (0 if bucketed else gradients) + max(backward, gradients)
    peak = held + max(layers_kept * layer + max(loss, backward), ends)
    parts = (weights, adapters, gradients, optimizer, reduction * GIB, layer, peak)
    return MemoryEstimate(*(part / GIB for part in parts))


def estimate_largest(
    shape: DecoderShape,
    tokens: int,
    layers_kept: int = 0,
    bits: Bits = 16,
    lora_rank: int | None = 16,
    reduction: float = 0.0,
    bucketed: bool = False,
) -> MemoryEstimate:
    """Estimates the memory of the piece that needs most, of pieces of up to `tokens` tokens.

    That need not be the largest piece: the logits of one that is just small enough for a single chunk are more than
    those of a chunk of four times as many tokens.

    Args:
        shape, tokens, layers_kept, bits, lora_rank, reduction, bucketed: As of [`estimate_memory`].

    Returns:
        `MemoryEstimate`: Each part for `tokens`, and the largest peak.
    """
    one_chunk = max(1, LOSS_BUDGET // (shape.vocabulary * BUDGETED_BYTES_PER_LOGIT))
    whole, small = (
        estimate_memory(shape, size, layers_kept, bits, lora_rank, reduction, bucketed)
        for size in (tokens, min(tokens, one_chunk))
    )
    return replace(whole, peak=max(whole.peak, small.peak))


def adapter_weights(shape: DecoderShape, rank: int) -> int:
    """The weights of LoRA on all linear layers: `rank` times the inputs and the outputs of each."""
    return shape.layers * rank * sum(inputs + outputs for inputs, outputs in shape.linear_shapes)


def saved_bytes(shape: DecoderShape, full: bool = False) -> int:
    """The bytes that a layer saves for backward for each token.

    In bf16: the inputs of both norms, of the q, k, v projections and of the MLP; q, k, v and the output of attention,
    once for `o_proj` and once for the attention kernel itself; gate and up. In float32: a log-sum-exp for each head
    and the scales of both norms. Where queries and keys are normalised also what they were before, and those scales.

    Args:
        shape (`DecoderShape`): The sizes of the model.
        full (`bool`, *optional*, defaults to `False`):
            Whether transformers' modules compute it, without Unsloth's kernels. They save the input of a norm in
            float32, and what it is before its weight; keys and values of each query head; the activated gate, and the
            input of the MLP's last projection; the output of attention once.

    Returns:
        `int`: Bytes.
    """
    normed, scales = 0, FP32 * (shape.heads + 2)
    if shape.normed_heads:
        normed = shape.attention_width + shape.key_value_width
        scales += FP32 * (shape.heads + shape.key_value_heads)
    if full:
        norms = 2 * (FP32 + 2 * BF16) * shape.hidden + (FP32 + BF16) * normed
        return norms + BF16 * (4 * shape.attention_width + 4 * shape.intermediate) + scales
    residual = 4 * shape.hidden
    attention = 3 * shape.attention_width + 2 * shape.key_value_width
    return BF16 * (residual + attention + normed + 2 * shape.intermediate) + scales


def _unpacked_bytes(shape: DecoderShape, bits: Bits) -> int:
    """The one buffer into which `fast_dequantize` (unsloth/kernels/utils.py) unpacks the weight it needs."""
    return 0 if bits == 16 else BF16 * max(inputs * outputs for inputs, outputs in shape.linear_shapes)


def _loss_bytes(shape: DecoderShape, tokens: int) -> int:
    """The last hidden states, their gradient, and the logits of one chunk."""
    budgets = tokens * shape.vocabulary * BUDGETED_BYTES_PER_LOGIT / LOSS_BUDGET
    chunks = 1 if budgets <= 1 else min(4 * math.ceil(budgets / 4), tokens)
    logits = math.ceil(tokens / chunks) * shape.vocabulary * HELD_BYTES_PER_LOGIT
    return 2 * BF16 * tokens * shape.hidden + logits


def _whole_loss_bytes(shape: DecoderShape, tokens: int) -> int:
    """All logits as the head has made them and in float32, in which transformers computes the loss, and the gradient
    of the head with what is added to it."""
    return (BF16 + FP32) * tokens * shape.vocabulary + 2 * BF16 * shape.head_weights


def _backward_bytes(shape: DecoderShape, tokens: int) -> int:
    """The temporaries of the MLP's backward, which is the widest: its hidden gradients and those of the residual."""
    return 2 * BF16 * tokens * (shape.intermediate + shape.hidden)
