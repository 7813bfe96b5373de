"""The config of a model, from a folder, a file or the hub."""

from pathlib import Path
from typing import Any, get_args

from ..errors import ConfigurationError
from ..plan.memory import Bits


def read_config(model: str) -> Any:
    """Reads a config. No weight is read or downloaded.

    Args:
        model (`str`): A folder with a `config.json`, such a file, or the id of a model on the Hugging Face hub.

    Returns:
        `transformers.PreTrainedConfig`: The config.

    Raises:
        ConfigurationError: If there is none, or transformers does not know the kind of model.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"`--model` must be a folder or file with a model's config.json, or the id of a model on the hub that can "
            f"be reached; got {model!r}. {' '.join(str(error).split())}"
        ) from error


def folder_of(model: str) -> str:
    """Where the tokenizer of a model is: beside its config, or under the same id."""
    path = Path(model)
    return str(path.parent) if path.is_file() else model


def stored_bits(config: Any) -> Bits:
    """The bits of the linear weights as they are stored: 4 or 8 where bitsandbytes has quantised them."""
    quantised = getattr(config, "quantization_config", None) or {}
    as_mapping = quantised if isinstance(quantised, dict) else quantised.to_dict()
    for bits in get_args(Bits):
        if as_mapping.get(f"load_in_{bits}bit"):
            found: Bits = bits
            return found
    return 16
