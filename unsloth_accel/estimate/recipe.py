"""What is to be trained, as far as memory and time follow from it."""

from dataclasses import dataclass

from ..errors import ConfigurationError
from ..plan.decoder import DecoderShape
from ..plan.memory import Bits, adapter_weights


BF16, FP32 = 2, 4


@dataclass(frozen=True)
class Recipe:
    """A model, how it is finetuned, and the rows of an optimizer step.

    Args:
        shape (`DecoderShape`): The sizes of the model.
        bits (`int`): The bits of a weight in a linear layer: 4, 8 or 16.
        lora_rank (`int`, *optional*): The rank of adapters on all linear layers. `None`: every weight is trained.
        sequence (`int`): The most tokens of a row.
        rows (`int`): The rows of a micro-batch, `per_device_train_batch_size`.
        accumulation (`int`): The micro-batches of a rank in an optimizer step.

    Raises:
        ConfigurationError: If a number is too small, or quantised weights would be trained.
    """

    shape: DecoderShape
    bits: Bits
    lora_rank: int | None
    sequence: int
    rows: int
    accumulation: int

    def __post_init__(self) -> None:
        for name in ("lora_rank", "sequence", "rows", "accumulation"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigurationError(f"`{name}` must be a positive integer, got {value}.")
        if self.lora_rank is None and self.bits != 16:
            raise ConfigurationError(
                f"`bits` must be 16 where every weight is trained, got {self.bits}. Train adapters, or leave it out."
            )

    @property
    def rows_of_rank(self) -> int:
        """The rows of a rank in an optimizer step."""
        return self.rows * self.accumulation

    @property
    def gradient_bytes(self) -> int:
        """What a rank contributes to a reduction: float32 for adapters, bf16 where every weight is trained."""
        if self.lora_rank is not None:
            return FP32 * adapter_weights(self.shape, self.lora_rank)
        embeddings = (1 if self.shape.tied else 2) * self.shape.head_weights
        return BF16 * (self.shape.linear_weights + embeddings)
