"""The model of a comparison as each library loads it, with adapters that begin alike."""

from typing import Any

import torch

from ..imports import load_unsloth
from ..ranks.environment import local_rank
from .comparison import Comparison
from .contenders import Library


LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# Of the language model and of the vision tower, whose linear layers have other names.
_ALL_LAYERS_THAT_SEE = {
    "finetune_vision_layers": True,
    "finetune_language_layers": True,
    "finetune_attention_modules": True,
    "finetune_mlp_modules": True,
}


def load(library: Library, comparison: Comparison) -> tuple[Any, Any]:
    """Loads it, and imports Unsloth only if that is the library.

    Args:
        library (`str`): Who loads it.
        comparison (`Comparison`): Names the folder, and what is trained.

    Returns:
        `tuple`: The model, with adapters unless all of it is trained, and its tokenizer, or the processor of one that
        sees.
    """
    model, tokenizer = _of_unsloth(comparison) if library == "unsloth" else _of_transformers(comparison)
    if comparison.finetuning != "full":
        _draw_adapters(model)
    return model, tokenizer


def precision() -> torch.dtype:
    """What this machine trains in: bf16, fp16 on cards that compute no bf16, float32 on the CPU."""
    if not torch.cuda.is_available():
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def _of_unsloth(comparison: Comparison) -> tuple[Any, Any]:
    unsloth = load_unsloth()
    loader = unsloth.FastVisionModel if comparison.has_images else unsloth.FastLanguageModel
    model, tokenizer = loader.from_pretrained(
        comparison.model,
        max_seq_length=comparison.sequence,
        dtype=precision(),
        load_in_4bit=comparison.finetuning == "qlora",
        full_finetuning=comparison.finetuning == "full",
    )
    if comparison.finetuning != "full":
        model = loader.get_peft_model(
            model,
            r=comparison.lora_rank,
            lora_alpha=comparison.lora_rank,
            lora_dropout=0,
            use_gradient_checkpointing="unsloth",
            **(_ALL_LAYERS_THAT_SEE if comparison.has_images else {"target_modules": LINEAR}),
        )
    return model, tokenizer


def _of_transformers(comparison: Comparison) -> tuple[Any, Any]:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    options: dict[str, Any] = {"device_map": {"": local_rank()}} if torch.cuda.is_available() else {}
    if comparison.finetuning == "qlora":  # as Unsloth quantises
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=precision(),
        )
    model: Any = AutoModelForCausalLM.from_pretrained(comparison.model, dtype=precision(), **options)
    if comparison.finetuning != "full":
        rank = comparison.lora_rank
        lora = LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0, target_modules=LINEAR, task_type="CAUSAL_LM")
        model = get_peft_model(model, lora)
    return model, AutoTokenizer.from_pretrained(comparison.model)


def _draw_adapters(model: torch.nn.Module) -> None:
    """The same values whoever made them, on every rank; B stays zero."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in sorted(model.named_parameters()):
        if "lora_A" in name:
            bound = parameter.shape[1] ** -0.5
            with torch.no_grad():
                parameter.copy_(bound * (2 * torch.rand(parameter.shape, generator=generator) - 1))


class Start:
    """The trained weights as they are now, kept on the host, so that each run begins with them.

    Args:
        model (`nn.Module`): Whose.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._model, self._forward = model, model.forward
        self._weights = [(p, p.detach().cpu().clone()) for p in model.parameters() if p.requires_grad]

    def restore(self) -> None:
        """Gives them back, and takes off the autocast that Accelerate wraps around `forward` in each run."""
        with torch.no_grad():
            for parameter, value in self._weights:
                parameter.copy_(value)
        self._model.forward = self._forward
