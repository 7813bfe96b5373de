"""The operations that a token costs in training, from the sizes of the model and from what of it is trained."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from ..errors import ConfigurationError
from ..plan.decoder import DecoderShape


@dataclass(frozen=True)
class TokenFlops:
    """The floating-point operations of a token in matrix products with weights, a multiply-add counted as two.

    With N weights in linear layers, the head among them, a token takes 2 N forward, 2 N for the gradients of the
    activations, and 2 for each of these weights that is trained: 6 N for full finetuning (Kaplan et al. 2020, "Scaling
    Laws for Neural Language Models", section 2.1, https://arxiv.org/abs/2001.08361), 4 N for LoRA.

    Not counted are adapters (1 % for r=16 on Llama 3.2 3B), the embedding, which is looked up, and the products of
    attention: what they take depends on the lengths of documents, which are on the device, and figures by 4 N or 6 N
    can be compared with those of others. With L layers, heads of a width of A together and a causal mask, attention
    in a document of T tokens adds a share of 1.5 L A T / N to 4 N: 4 % at 1024 tokens of Llama 3.2 3B.

    Args:
        model (`int`): What forward and backward need.
        recomputed (`int`): What computing all layers again in backward adds.
    """

    model: int
    recomputed: int

    @classmethod
    def from_model(cls, model: nn.Module) -> "TokenFlops":
        """Counts what is trained now.

        Args:
            model (`nn.Module`): A decoder of transformers, with or without PEFT around it.

        Returns:
            `TokenFlops`: Its operations.

        Raises:
            ConfigurationError: If there is no config, or it is not that of a dense decoder, or the linear layers are
                not those of it, as in models that also see or that give rewards.
        """
        if not hasattr(model, "config"):
            raise ConfigurationError(f"a {type(model).__name__} has no config")
        shape = DecoderShape.from_config(model.config)
        expected = shape.linear_weights + shape.head_weights
        layers = list(_linear_layers(model))
        found = sum(map(_weights, layers))
        if found != expected:
            raise ConfigurationError(
                f"its linear layers hold {found:,} weights, and those of a dense decoder of its config {expected:,}"
            )
        trained = sum(_weights(layer) for layer in layers if layer.weight.requires_grad)
        return cls(model=4 * expected + 2 * trained, recomputed=2 * shape.linear_weights)


def _linear_layers(model: nn.Module) -> Iterator[nn.Linear]:
    """The linear layers that a token passes, without those of adapters and what PEFT has put a trained copy of."""
    for name, module in model.named_modules():
        parts = name.split(".")
        is_extra = "original_module" in parts or any(part.startswith("lora_") for part in parts)
        if isinstance(module, nn.Linear) and not is_extra:
            yield module


def _weights(layer: nn.Linear) -> int:
    """Of a quantised layer `weight.numel()` would be its packed bytes."""
    return layer.in_features * layer.out_features
