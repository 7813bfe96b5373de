"""The drop-in on two ranks with real Unsloth: `trainers.py MODEL OUT`; each rank writes OUT-<rank>.json.

First what is logged, next to plain TRL on the same ranks; at the end rank 1 fails in the middle of a step.
"""

import atexit
import gc
import json
import sys
import time
from pathlib import Path


from unsloth_accel import PeerError, UnslothAcceleratedSFTTrainer  # isort: skip
import torch
import torch.distributed as dist
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from start import RANK, failure, write_result
from transformers import AutoModelForCausalLM, AutoTokenizer, MixtralConfig, MixtralForCausalLM
from trl import SFTConfig, SFTTrainer

from unsloth_accel.metrics.window import METRICS


MODEL, OUT = sys.argv[1:]
STOPPED = Path(f"{OUT}-stopped")
TOKENIZER = AutoTokenizer.from_pretrained(MODEL)


def rows(count, first=0):
    numbers = range(first, first + count)
    return Dataset.from_dict({"text": [f"Row {number} of the data. " * (1 + number * 7 % 5) for number in numbers]})


def dense():
    """Loaded without Unsloth's loader: its CPU backend then leaves the loss, and what is logged with it, to TRL."""
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)


def experts():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = MixtralConfig(
        **sizes, num_hidden_layers=2, num_local_experts=4, vocab_size=512, output_router_logits=True, pad_token_id=0
    )
    return MixtralForCausalLM(config)


def with_lora(model):
    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj", "v_proj"]))


def make_trainer(kind, model, **arguments):
    config = SFTConfig(
        output_dir=f"{OUT}.run",
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=4,
        learning_rate=1e-2,
        optim="adamw_torch",
        logging_steps=2,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        **arguments,
    )
    data = {"train_dataset": rows(32), "eval_dataset": rows(6, first=50)}
    return kind(model=model, processing_class=TOKENIZER, args=config, **data)


def logged(kind, build):
    trainer = make_trainer(kind, with_lora(build()))
    trainer.train()
    added = ("runtime", "per_second", *METRICS)
    history = [
        {key: value for key, value in entry.items() if not key.endswith(added)} for entry in trainer.state.log_history
    ]
    del trainer
    gc.collect()
    return history


def refusal(model, **arguments):
    return failure(make_trainer, UnslothAcceleratedSFTTrainer, model, **arguments)


def split():
    model = with_lora(dense())
    layer = model.base_model.model.model.layers[1].self_attn.q_proj.lora_A
    layer["default"] = layer["default"].to("meta")
    return model


class FailsInItsThirdForward:
    def __init__(self):
        self.calls = 0

    def __call__(self, *_):
        self.calls += 1
        if RANK == 1 and self.calls == 3:
            raise ValueError("only rank 1 has this row")


def fail():
    """Rank 1 fails in its third micro-batch. It leaves only after rank 0 has noted why it stopped."""
    model = with_lora(dense())
    trainer = make_trainer(UnslothAcceleratedSFTTrainer, model)
    model.register_forward_pre_hook(FailsInItsThirdForward())
    try:
        trainer.train()
    except PeerError as error:
        saved = failure(trainer.save_model, f"{OUT}.saved")
        STOPPED.write_text(json.dumps({"text": str(error), "step": trainer.state.global_step, "saved": saved}))
        raise
    except ValueError:
        deadline = time.monotonic() + 20
        while not STOPPED.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        raise


def note_how_it_ended():
    """Registered first, so it runs last."""
    Path(f"{OUT}-{RANK}.group").write_text("left over" if dist.is_initialized() else "destroyed")


def main():
    result = {
        build.__name__: {kind.__name__: logged(kind, build) for kind in (SFTTrainer, UnslothAcceleratedSFTTrainer)}
        for build in (dense, experts)
    }
    result["split"] = refusal(split())
    result["nccl"] = refusal(with_lora(dense()), ddp_backend="nccl")
    write_result(OUT, result)
    fail()


if __name__ == "__main__":
    atexit.register(note_how_it_ended)
    main()
