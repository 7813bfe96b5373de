"""The sizes of a decoder, read from its config: what the cost of a row and the memory of a step follow from."""

from dataclasses import dataclass
from typing import Any

from ..errors import ConfigurationError


# How configs say that a token does not pass through every weight, or that keys and values are compressed.
UNLIKE_A_DENSE_DECODER = ("num_experts_per_tok", "num_experts", "num_local_experts", "kv_lora_rank")
# The dense decoders of Unsloth that normalise queries and keys, which no config says.
NORMALISE_HEADS = ("gemma3_text", "qwen3")


@dataclass(frozen=True)
class DecoderShape:
    """A dense decoder with a gated MLP, as Llama, Qwen, Mistral and Gemma are.

    Args:
        hidden (`int`): The width of the residual stream.
        intermediate (`int`): The width of the MLP.
        layers (`int`): The number of decoder layers.
        attending_layers (`int`): Those of them that attend to the whole row, not to a window of it.
        heads (`int`): Query heads of a layer.
        key_value_heads (`int`): Key and value heads of a layer.
        head_dim (`int`): The width of one head.
        vocabulary (`int`): Tokens of the vocabulary.
        tied (`bool`): Whether the embedding is the language modelling head, too.
        normed_heads (`bool`, *optional*, defaults to `False`): Whether queries and keys are normalised.
    """

    hidden: int
    intermediate: int
    layers: int
    attending_layers: int
    heads: int
    key_value_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    normed_heads: bool = False

    @classmethod
    def from_config(cls, config: Any) -> "DecoderShape":
        """Reads the sizes.

        Args:
            config (`PreTrainedConfig`): A model's config; of one with several parts, its text decoder counts.

        Returns:
            `DecoderShape`: The sizes.

        Raises:
            ConfigurationError: If the config lacks a size, or is one of experts or of compressed keys and values.
        """
        text = config.get_text_config(decoder=True)
        for name in UNLIKE_A_DENSE_DECODER:
            if getattr(text, name, None):
                raise ConfigurationError(f"`{name}` of a {text.model_type} config: only dense decoders are estimated")
        heads, layers = _size(text, "num_attention_heads"), _size(text, "num_hidden_layers")
        kinds = getattr(text, "layer_types", None) or ["full_attention"] * layers
        return cls(
            hidden=_size(text, "hidden_size"),
            intermediate=_size(text, "intermediate_size"),
            layers=layers,
            attending_layers=kinds.count("full_attention"),
            heads=heads,
            key_value_heads=getattr(text, "num_key_value_heads", None) or heads,
            head_dim=getattr(text, "head_dim", None) or _size(text, "hidden_size") // heads,
            vocabulary=_size(text, "vocab_size"),
            tied=bool(getattr(text, "tie_word_embeddings", False)),
            normed_heads=text.model_type in NORMALISE_HEADS,
        )

    @property
    def attention_width(self) -> int:
        """The width of all query heads together."""
        return self.heads * self.head_dim

    @property
    def key_value_width(self) -> int:
        """The width of all key heads together, and of all value heads."""
        return self.key_value_heads * self.head_dim

    @property
    def linear_shapes(self) -> tuple[tuple[int, int], ...]:
        """Inputs and outputs of the seven linear layers of a decoder layer: q, k, v, o, gate, up, down."""
        queries, keys = (self.hidden, self.attention_width), (self.hidden, self.key_value_width)
        wider = (self.hidden, self.intermediate)
        return queries, keys, keys, queries[::-1], wider, wider, wider[::-1]

    @property
    def linear_weights(self) -> int:
        """The weights of the linear layers of all decoder layers."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.linear_shapes)

    @property
    def head_weights(self) -> int:
        """The weights of the language modelling head, and as many of the embedding."""
        return self.vocabulary * self.hidden


def _size(config: Any, name: str) -> int:
    value = getattr(config, name, None)
    if not isinstance(value, int) or value < 1:
        raise ConfigurationError(f"`{name}` is {value!r} in a {config.model_type} config")
    return value
