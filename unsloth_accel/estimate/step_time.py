"""How long a rank computes an optimizer step, from its operations and from what the host needs to start kernels."""

from dataclasses import dataclass

from .recipe import Recipe


# The share of a card's dense peak that training reaches, and the milliseconds in which a host starts the kernels of a
# layer in one pass (forward, backward or recomputing), without compiling. Each was taken from one measured line, 3b
# LoRA on H200 (docs/planning.md): 4 rows of 2048 with no layer recomputed, 270 ms; 2 uneven rows x 4, 1329 ms.
EFFICIENCY = 0.43
LAUNCH_MS = 3.9


@dataclass(frozen=True)
class RankWork:
    """What a rank computes in an optimizer step.

    Args:
        tokens (`float`): Its tokens.
        squares (`float`): The sum of its documents' tokens squared.
        pieces (`int`): Into how many batches they are put.
        layers_kept (`int`): The layers that are not recomputed.
    """

    tokens: float
    squares: float
    pieces: int
    layers_kept: int


def device_ms(recipe: Recipe, work: RankWork, peak: float) -> float:
    """What the GPU needs.

    A token takes 2 N operations forward, 2 N for the gradients of activations and 2 for each weight that is trained
    (Kaplan et al. 2020, section 2.1, https://arxiv.org/abs/2001.08361), 2 more for each weight that is recomputed.
    Causal attention in a document of T tokens takes 2 L A T^2 forward and twice that backward.

    Args:
        recipe (`Recipe`): What is trained.
        work (`RankWork`): What the rank computes.
        peak (`float`): The card's dense peak, in FLOP/s.
    """
    shape = recipe.shape
    weights = shape.linear_weights + shape.head_weights
    recomputed = 1 - work.layers_kept / shape.layers
    products = 4 * weights + (2 * weights if recipe.lora_rank is None else 0) + 2 * recomputed * shape.linear_weights
    attention = 2 * shape.attending_layers * shape.attention_width * (3 + recomputed)
    return 1000 * (products * work.tokens + attention * work.squares) / (EFFICIENCY * peak)


def host_ms(recipe: Recipe, work: RankWork) -> float:
    """What the host needs to start the kernels; nothing of it depends on the tokens."""
    return LAUNCH_MS * work.pieces * (3 * recipe.shape.layers - work.layers_kept)


def compute_ms(recipe: Recipe, work: RankWork, peak: float) -> float:
    """The longer of both: a GPU that waits for its host, or a host that is ahead of its GPU."""
    return max(device_ms(recipe, work, peak), host_ms(recipe, work))
