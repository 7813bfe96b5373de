"""How much of what the GPUs could compute a step has used."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..errors import ConfigurationError
from ..plan.layers import checkpointable_layers, is_recomputed
from ..ranks.logging import log_once
from .flops import TokenFlops
from .peak_flops import peak_flops


class Utilization:
    """Counts a trainer's floating-point operations against the dense peak of its GPUs.

    Args:
        flops ([`TokenFlops`]): The operations of a token.
        peak (`float`): What all GPUs together can do, in FLOP/s.
        layers (`Sequence[nn.Module]`): The layers whose activations are computed again, or kept, as their flag says.
    """

    def __init__(self, flops: TokenFlops, peak: float, layers: Sequence[nn.Module]) -> None:
        self.peak = peak
        self._flops, self._layers = flops, layers

    @classmethod
    def of_trainer(cls, trainer: Any) -> "Utilization | None":
        """What is known of this trainer's model and GPU; None where that is not enough, and why is logged.

        Args:
            trainer (`transformers.Trainer`): One that trains on several ranks.
        """
        device = trainer.args.device
        if device.type != "cuda":
            return None
        name, precision = torch.cuda.get_device_name(device), _precision(trainer)
        is_16_bit = precision in (torch.bfloat16, torch.float16)
        peak = peak_flops(name, bf16=precision is torch.bfloat16) if is_16_bit else None
        if peak is None:
            log_once("metrics: no MFU, because the dense peak of a %s in %s is not known", name, precision)
            return None
        try:
            flops = TokenFlops.from_model(trainer.model)
        except ConfigurationError as unlike:
            log_once("metrics: no MFU, because the model's operations are not known: %s", unlike)
            return None
        return cls(flops, peak * trainer.args.world_size, checkpointable_layers(trainer.model))

    def recomputed_share(self) -> float:
        """The share of the layers that are computed again in backward, as their flags are now."""
        flags = [is_recomputed(layer) for layer in self._layers]
        return sum(flags) / len(flags) if flags else 0.0

    def model_flops(self, tokens: float) -> float:
        """The operations that so many tokens need."""
        return tokens * self._flops.model

    def hardware_flops(self, computed_tokens: float, recomputed_share: float) -> float:
        """The operations that were done for so many tokens, padding among them."""
        return computed_tokens * (self._flops.model + recomputed_share * self._flops.recomputed)


def _precision(trainer: Any) -> torch.dtype | None:
    if trainer.args.bf16:
        return torch.bfloat16
    return torch.float16 if trainer.args.fp16 else getattr(trainer.model, "dtype", None)
