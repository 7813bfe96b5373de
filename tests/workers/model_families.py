"""Trains tiny models whose batches do not all train the same parameters, one JSON line per case from rank 0.

Usage: model_families.py save FOLDER            saves each family's model, tokenizer and processor (needs torchvision)
       model_families.py FOLDER OUT CASE ...    trains, on one rank with python or on several with `accelerate launch`

A CASE is `key=value,...`; the keys and their defaults are the fields of `Case`. On a GPU real Unsloth loads what lies
in FOLDER and trains it with its generated trainer. On the CPU, where Unsloth's backend refuses vision models, the
models are those of transformers and so is the trainer, with our mixin in front; FOLDER is not used.
"""

import os
import random
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from cases import COMPARABLE, ON_GPU, SGD, WORLD_SIZE, between_ranks, of_all_ranks, report, steps_logged


sys.path.insert(0, str(Path(__file__).parents[1]))
GLOBAL_BATCH, STEPS = 4, 4
CHECKPOINTING = {"unsloth": "unsloth", "true": True, "false": False}
MAX_LENGTH = 512  # below, Unsloth takes "unsloth" for True
WORDS = ["rank", "rows", "gradient", "tokens", "step", "weights"]
# Rows 4 n to 4 n + 1 are the first rank's in step n, the other two the second's. One rank alone runs the tower, then
# the other; then both, with a row of text each; then neither.
HAS_IMAGE = [1, 1, 0, 0, 0, 0, 1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
# Patches of an image: 4 x 4, merged into 4 tokens.
PATCH, IMAGE_SIZE, IMAGE_TOKENS = 14, 56, 4
VISION_TOKENS = {
    "qwen2_5_vl": {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"},
    "gemma3": {"boi_token": "<start_of_image>", "image_token": "<image_soft_token>", "eoi_token": "<end_of_image>"},
}
IMAGE_TEXT = {"qwen2_5_vl": "<|vision_start|><|image_pad|><|vision_end|>", "gemma3": "<start_of_image>"}
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}</s>\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


@dataclass
class Case:
    family: str
    kind: str = "full"  # or lora
    sync: str = "auto"
    trainer: str = "accelerated"  # or plain: what is there without us
    checkpointing: str = "false"  # or true, unsloth; reentrant: only without Unsloth, which decides that itself


TEXT = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# Two layers of six have no key and value projections and use those of the layers before.
SHARED_KV = {
    **TEXT,
    "num_hidden_layers": 6,
    "head_dim": 32,
    "layer_types": ["sliding_attention", "full_attention"] * 3,
    "sliding_window": 32,
    "num_kv_shared_layers": 2,
    "vocab_size_per_layer_input": 512,
    "hidden_size_per_layer_input": 16,
}


def qwen2_5_vl(token_id):
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64}
    return Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLConfig(
        text_config={**TEXT, "num_hidden_layers": 2, "rope_parameters": rope},
        vision_config={**vision, "patch_size": PATCH, "window_size": IMAGE_SIZE, "fullatt_block_indexes": [1]},
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
        tie_word_embeddings=False,
        **{key: TEXT[key] for key in ("pad_token_id", "bos_token_id", "eos_token_id")},
    )


def gemma3(token_id):
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    vision = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    return Gemma3ForConditionalGeneration, Gemma3Config(
        text_config={**TEXT, "num_hidden_layers": 2, "head_dim": 32, "query_pre_attn_scalar": 32},
        vision_config={**vision, "patch_size": PATCH, "image_size": IMAGE_SIZE},
        mm_tokens_per_image=IMAGE_TOKENS,
        boi_token_index=token_id("<start_of_image>"),
        eoi_token_index=token_id("<end_of_image>"),
        image_token_index=token_id("<image_soft_token>"),
        **{key: TEXT[key] for key in ("pad_token_id", "bos_token_id", "eos_token_id")},
    )


def qwen3_moe(token_id):
    """64 experts, one per token: of the few tokens of a micro-batch most experts get none."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    experts = {"num_experts": 64, "num_experts_per_tok": 1, "moe_intermediate_size": 32, "norm_topk_prob": False}
    return Qwen3MoeForCausalLM, Qwen3MoeConfig(**TEXT, **experts, num_hidden_layers=2, head_dim=32)


def gemma3n(token_id):
    from transformers import Gemma3nForCausalLM, Gemma3nTextConfig

    sparsity = [0.5, 0.5, 0.0, 0.0, 0.0, 0.0]
    altup = {"altup_num_inputs": 2, "laurel_rank": 8}
    return Gemma3nForCausalLM, Gemma3nTextConfig(**SHARED_KV, **altup, activation_sparsity_pattern=sparsity)


def gemma4(token_id):
    from transformers import Gemma4ForCausalLM, Gemma4TextConfig

    return Gemma4ForCausalLM, Gemma4TextConfig(**SHARED_KV, global_head_dim=32)


FAMILIES: dict[str, Callable] = {f.__name__: f for f in (qwen2_5_vl, gemma3, qwen3_moe, gemma3n, gemma4)}


def make_tokenizer(family):
    from tiny_model import make_tokenizer

    tokenizer = make_tokenizer()
    named = VISION_TOKENS.get(family, {})
    wrapping = ["<|vision_start|>", "<|vision_end|>"] if family == "qwen2_5_vl" else []
    tokenizer.add_special_tokens({"extra_special_tokens": [*named.values(), *wrapping]})
    for name, token in named.items():  # what the processors look for on the tokenizer
        tokenizer._set_model_specific_special_tokens({name: token})
    tokenizer.chat_template = TEMPLATE.replace("IMAGE", IMAGE_TEXT.get(family, ""))
    return tokenizer


def make_model(family, tokenizer):
    model_class, config = FAMILIES[family](tokenizer.convert_tokens_to_ids)
    torch.manual_seed(0)
    model = model_class(config)
    if family == "gemma3":  # made of zeros, which the norm behind it turns into gradients of thousands
        torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.2)
    return model


def save(folder):
    """The models as a user has them: a folder that `from_pretrained` reads."""
    for family in FAMILIES:
        tokenizer = make_tokenizer(family)
        make_model(family, tokenizer).save_pretrained(folder / family)
        processor = make_processor(family, tokenizer) if family in VISION_TOKENS else tokenizer
        processor.save_pretrained(folder / family)


def make_processor(family, tokenizer):
    import transformers

    if family == "gemma3":
        images = transformers.Gemma3ImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
        return transformers.Gemma3Processor(
            images, tokenizer, chat_template=tokenizer.chat_template, image_seq_length=IMAGE_TOKENS
        )
    pixels = {"min_pixels": IMAGE_SIZE**2, "max_pixels": IMAGE_SIZE**2, "patch_size": PATCH}
    return transformers.Qwen2_5_VLProcessor(
        transformers.Qwen2VLImageProcessor(**pixels),
        tokenizer,
        transformers.Qwen2VLVideoProcessor(**pixels),
        chat_template=tokenizer.chat_template,
    )


def texts():
    draw = random.Random(0)
    return [" ".join(draw.choice(WORDS) for _ in range(draw.randint(4, 12))) for _ in HAS_IMAGE]


def conversations():
    """Rows as Unsloth's vision notebooks have them."""
    import numpy
    from PIL import Image

    pixels = numpy.random.default_rng(0)
    rows = []
    for text, has_image in zip(texts(), HAS_IMAGE, strict=True):
        question = [{"type": "text", "text": "rank"}]
        if has_image:
            drawn = pixels.integers(0, 255, (IMAGE_SIZE, IMAGE_SIZE, 3), dtype=numpy.uint8)
            question.insert(0, {"type": "image", "image": Image.fromarray(drawn)})
        answer = [{"type": "text", "text": text}]
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        rows.append({"messages": messages})
    return rows


def training_arguments(case, config_class, folder, **options):
    return config_class(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=GLOBAL_BATCH // 2 // WORLD_SIZE,
        train_sampling_strategy="sequential",
        max_steps=STEPS,
        gradient_checkpointing=case.checkpointing != "false",
        remove_unused_columns=False,
        ddp_timeout=120,  # where plain DDP waits for a gradient that a rank will not have
        # Adam would make a step of a rounding. In Gemma 4's random weights steps of 0.01 still make one fifty times as
        # large.
        **COMPARABLE | SGD | {"learning_rate": 0.001 if case.family == "gemma4" else 0.01},
        **options,
    )


def unsloth_trainer(case, folder, out):
    # Unsloth before trl and transformers, which it rebinds.
    from unsloth_accel import UnslothAcceleratedSFTTrainer, UnslothAcceleratorPlugin  # isort: skip
    from trl import SFTConfig, SFTTrainer
    from unsloth import FastModel, FastVisionModel
    from unsloth.trainer import UnslothVisionDataCollator

    sees = case.family in VISION_TOKENS
    loader = FastVisionModel if sees else FastModel
    checkpointing = CHECKPOINTING[case.checkpointing]
    model, processor = loader.from_pretrained(
        str(folder / case.family),
        max_seq_length=MAX_LENGTH,
        dtype=torch.float32,
        load_in_4bit=False,
        full_finetuning=case.kind == "full",
        use_gradient_checkpointing=checkpointing,
    )
    if case.kind == "lora":
        model = loader.get_peft_model(
            model,
            r=8,
            lora_alpha=8,
            lora_dropout=0,
            random_state=3407,
            finetune_vision_layers=sees,
            use_gradient_checkpointing=checkpointing,
        )
    if sees:
        vision = {"dataset_text_field": "", "dataset_kwargs": {"skip_prepare_dataset": True}}
        data = {"train_dataset": conversations(), "data_collator": UnslothVisionDataCollator(model, processor)}
    else:
        from datasets import Dataset

        vision, data = {}, {"train_dataset": Dataset.from_list([{"text": text} for text in texts()])}
    # What Unsloth writes for training without autocast. Else it would put float32 weights under bf16 autocast.
    os.environ["UNSLOTH_MIXED_PRECISION"] = "bfloat16"
    args = training_arguments(case, SFTConfig, out, max_length=MAX_LENGTH, **vision)
    common = {"model": model, "processing_class": processor, "args": args, **data}
    if case.trainer == "plain":
        return SFTTrainer(**common)
    return UnslothAcceleratedSFTTrainer(**common, plugin=UnslothAcceleratorPlugin(gradient_sync=case.sync))


def stock_trainer(case, folder, out):
    from transformers import Trainer, TrainingArguments

    from unsloth_accel import UnslothAcceleratedTrainerMixin, UnslothAcceleratorPlugin

    class AcceleratedTrainer(UnslothAcceleratedTrainerMixin, Trainer):
        pass

    tokenizer = make_tokenizer(case.family)
    reentrant = {"use_reentrant": case.checkpointing == "reentrant"}
    common = {
        "model": make_model(case.family, tokenizer),
        "args": training_arguments(case, TrainingArguments, out, gradient_checkpointing_kwargs=reentrant),
        "train_dataset": list(enumerate(texts())),
        "data_collator": lambda rows: stock_batch(case.family, tokenizer, rows),
    }
    if case.trainer == "plain":
        return Trainer(**common)
    return AcceleratedTrainer(**common, plugin=UnslothAcceleratorPlugin(gradient_sync=case.sync))


def stock_batch(family, tokenizer, rows):
    """What the processors make, without torchvision, which they need: `rows` are (number, text)."""
    seen = [number for number, _ in rows if HAS_IMAGE[number] and family in VISION_TOKENS]
    image = VISION_TOKENS.get(family, {}).get("image_token", "")
    wrapping = {"qwen2_5_vl": "<|vision_start|>{}<|vision_end|>", "gemma3": "<start_of_image>{}<end_of_image>"}
    in_front = wrapping.get(family, "").format(image * IMAGE_TOKENS)
    lines = [in_front + text if number in seen else text for number, text in rows]
    batch = dict(tokenizer(lines, padding=True, return_tensors="pt"))
    batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    if family in VISION_TOKENS:
        is_image = (batch["input_ids"] == tokenizer.convert_tokens_to_ids(image)).long()
        batch["labels"].masked_fill_(is_image == 1, -100)
        batch["mm_token_type_ids" if family == "qwen2_5_vl" else "token_type_ids"] = is_image
    if seen:
        pixels = [torch.Generator().manual_seed(number) for number in seen]
        if family == "gemma3":
            batch["pixel_values"] = torch.stack([torch.randn(3, IMAGE_SIZE, IMAGE_SIZE, generator=g) for g in pixels])
        else:
            patches = (IMAGE_SIZE // PATCH) ** 2
            batch["pixel_values"] = torch.cat([torch.randn(patches, 6 * PATCH**2, generator=g) for g in pixels])
            batch["image_grid_thw"] = torch.tensor([[1, IMAGE_SIZE // PATCH, IMAGE_SIZE // PATCH]] * len(seen))
    return batch


def count_experts(model):
    """The experts that each forward of the first layer with experts has tokens for."""
    used = []
    for name, module in model.named_modules():
        if name.endswith(".experts"):
            module.register_forward_pre_hook(lambda _, args: used.append(sorted(set(args[1].reshape(-1).tolist()))))
            break
    return used


def reentrancy(module):
    """How a module that is checkpointed is, as transformers and Unsloth set it; empty for the others."""
    function = getattr(module, "_gradient_checkpointing_func", None) if module.training else None
    if function is None or not getattr(module, "gradient_checkpointing", False):
        return ""
    return f"{getattr(function, 'func', function).__name__} {getattr(function, 'keywords', '')}"


def prefetched():
    """How many activations have come back from the host a layer ahead, in this process."""
    if not ON_GPU:
        return 0
    from unsloth_zoo import gradient_checkpointing

    offloader = gradient_checkpointing.NONREENTRANT_OFFLOADER
    return offloader.stats["prefetch_hits"] if offloader else 0


def train(case, folder, out):
    trainer = (unsloth_trainer if ON_GPU else stock_trainer)(case, folder, out.with_suffix(".run"))
    used = [] if ON_GPU else count_experts(trainer.model)
    prefetched_before = prefetched()
    trainer.train()
    trained = [p.detach().float().reshape(-1) for p in trainer.model.parameters() if p.requires_grad]
    weights = torch.cat(trained).cpu()
    ddp = trainer.model_wrapped
    return {
        "logs": steps_logged(trainer),
        "numel": weights.numel(),
        "weights": weights[:: max(1, weights.numel() // 1000)].tolist(),
        "between_ranks": between_ranks(weights),
        "experts": of_all_ranks(used),
        "choice": str(vars(trainer).get("gradient_sync")),
        "mixed_precision": trainer.accelerator.mixed_precision,
        "prefetched": prefetched() - prefetched_before,
        "reentrant": sorted({reentrancy(module) for module in trainer.model.modules()} - {""}),
        "find_unused_parameters": getattr(ddp, "find_unused_parameters", None),
    }


def main() -> None:
    folder, out, *cases = sys.argv[1:]
    if folder == "save":
        save(Path(out))
    for text in cases:
        case = Case(**dict(pair.split("=") for pair in text.split(",")))
        result = {"case": text, "world_size": WORLD_SIZE, **asdict(case)}
        report(Path(out), result, partial(train, case, Path(folder), Path(out)))


if __name__ == "__main__":
    main()
