"""What it costs to compute rows, in whole numbers: sums and ties are then the same on every CPU, so on every rank."""

from dataclasses import dataclass
from typing import Any

from ..errors import ConfigurationError
from .decoder import DecoderShape
from .lengths import IntArray, RowLengths


# The cost of a token's matrix products with weights. Large enough that the quadratic term is an integer to 1 %, small
# enough that a step of 65,536 rows of a million tokens fits into 64 bits.
TOKEN_COST = 1 << 22


@dataclass(frozen=True)
class RowCost:
    """What rows cost, relative to `TOKEN_COST`.

    Args:
        quadratic (`int`, *optional*, defaults to 0): The cost of attention in a document of one token; it grows with
            the square of the tokens.
        padded (`bool`, *optional*, defaults to `False`): Whether every row of a batch is padded to the longest.
        reason (`str`, *optional*, defaults to `""`): Why there is no quadratic term, if there is none.
    """

    quadratic: int = 0
    padded: bool = False
    reason: str = ""

    @classmethod
    def from_config(cls, config: Any, padded: bool = False) -> "RowCost":
        """Derives the quadratic term from the sizes of a model.

        A row of T tokens costs `6 N T + 12 L A T^2` FLOPs forward and backward, with N weights in matrix products, L
        layers and heads of a width of A together (Chowdhery et al. 2022, "PaLM", https://arxiv.org/abs/2204.02311,
        appendix B). A causal kernel leaves out half of the second term, so in units of a token's `6 N` the row costs
        `T + (L A / N) T^2`: 2.7e-5 for Llama 3.2 3B. Layers with a window count as linear, frozen weights as trained.

        Args:
            config (`PreTrainedConfig`): The model's config.
            padded (`bool`, *optional*, defaults to `False`): Whether every row of a batch is padded to the longest.

        Returns:
            `RowCost`: Without a quadratic term, and with the reason, where the config does not say enough.
        """
        try:
            shape = DecoderShape.from_config(config)
        except ConfigurationError as error:
            return cls(padded=padded, reason=str(error))
        weights = shape.linear_weights + shape.head_weights
        return cls(round(TOKEN_COST * shape.attending_layers * shape.attention_width / weights), padded)

    def of_rows(self, lengths: RowLengths) -> IntArray:
        """The cost of each row alone."""
        return TOKEN_COST * lengths.tokens + self.quadratic * lengths.squares

    def of_batch(self, lengths: RowLengths) -> int:
        """The cost of all these rows in one batch."""
        if not self.padded or not len(lengths):
            return int(self.of_rows(lengths).sum())
        longest = int(lengths.tokens.max())
        return len(lengths) * (TOKEN_COST * longest + self.quadratic * longest**2)
