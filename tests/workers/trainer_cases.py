"""The trainers of `other_trainers.py`, each ready to train the tiny model on rows of its kind.

One rank gets the trainer as Unsloth and TRL have it, several get `accelerated(...)` of it, at the same global batch.
With GENERATED_TRAINERS in the environment the trainers are those that Unsloth generates for GPUs, on the CPU, around
models of transformers; it lists modules of `trl.trainer`, or is empty, which means all.
"""

import os
import random


GENERATED = "GENERATED_TRAINERS" in os.environ
if GENERATED:
    import generated_trainers

    generated_trainers.load(*os.environ["GENERATED_TRAINERS"].split())

from unsloth_accel import UnslothAcceleratorPlugin, accelerated  # isort: skip
import counting_tokenizer
import torch
import trl
import unsloth
from cases import COMPARABLE, ON_GPU, SGD, WORLD_SIZE
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)


GLOBAL_BATCH, STEPS, GENERATIONS = 8, 4, 8
WORDS = ["rank", "rows", "gradient", "tokens", "step", "weights"]


def of(trainer_class):
    return trainer_class if WORLD_SIZE == 1 else accelerated(trainer_class)


def arguments(config_class, folder, accumulation, **more):
    if ON_GPU:  # what Unsloth writes for training without autocast; else it puts float32 weights under bf16 autocast
        os.environ["UNSLOTH_MIXED_PRECISION"] = "bfloat16"
    options = {
        "per_device_train_batch_size": GLOBAL_BATCH // WORLD_SIZE // accumulation,
        "gradient_accumulation_steps": accumulation,
        "max_steps": STEPS,
        "gradient_checkpointing": False,
        "bf16": False,
    }
    optimizer = {} if ON_GPU else SGD  # only on the CPU are weights compared
    return config_class(output_dir=str(folder), **COMPARABLE | optimizer | options | more)


LORA = {
    "r": 8,
    "lora_alpha": 8,
    "lora_dropout": 0,
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}


def stock_model(path):
    """What Unsloth's generated trainers train where its own models, which need a GPU, cannot be loaded."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(**LORA, task_type="CAUSAL_LM"))
    for part in (model, model.base_model.model):  # what Unsloth's models have, and its GRPO calls
        part.for_training, part.for_inference = (lambda *_, **__: model.train()), (lambda *_, **__: model.eval())
    return model, counting_tokenizer.CountingTokenizer.from_pretrained(path)


def language_model(path, full=False, modules_to_save=None):
    if GENERATED:
        return stock_model(path)
    model, _ = unsloth.FastLanguageModel.from_pretrained(
        path,
        max_seq_length=256,
        dtype=torch.float32,
        load_in_4bit=False,
        full_finetuning=full,
        use_gradient_checkpointing=False,
    )
    if not full:
        model = unsloth.FastLanguageModel.get_peft_model(
            model,
            **LORA,
            random_state=3407,
            modules_to_save=modules_to_save,
            use_gradient_checkpointing=False,
        )
        assert hasattr(model, "peft_config"), "a case before this one was of full finetuning"
    return model, counting_tokenizer.CountingTokenizer.from_pretrained(path)


def text(draw, longest):
    return " ".join(draw.choice(WORDS) for _ in range(draw.randint(3, longest)))


def pairs():
    draw = random.Random(0)
    return Dataset.from_list(
        [{"prompt": text(draw, 20), "chosen": text(draw, 40), "rejected": text(draw, 40)} for _ in range(40)]
    )


def judged():
    draw = random.Random(0)
    return Dataset.from_list(
        [{"prompt": text(draw, 20), "completion": text(draw, 40), "label": draw.random() < 0.5} for _ in range(40)]
    )


def texts():
    draw = random.Random(0)
    return [text(draw, 90) for _ in range(40)]


def prompts():
    draw = random.Random(0)
    return Dataset.from_list([{"prompt": text(draw, 10)} for _ in range(40)])


def dpo(path, folder, accumulation, **options):
    model, tokenizer = language_model(path)
    args = arguments(trl.DPOConfig, folder, accumulation, **options)
    return of(trl.DPOTrainer)(model=model, args=args, train_dataset=pairs(), processing_class=tokenizer)


def dpo_full(path, folder, accumulation):
    """With the reference model, which stands before the arguments, by position; on several ranks with a plan."""
    (model, tokenizer), (reference, _) = (language_model(path, full=True) for _ in range(2))
    args = arguments(trl.DPOConfig, folder, accumulation)
    asked = {} if WORLD_SIZE == 1 else {"plugin": UnslothAcceleratorPlugin(plan="auto")}
    return of(trl.DPOTrainer)(model, reference, args, train_dataset=pairs(), processing_class=tokenizer, **asked)


def dpo_precomputed(path, folder, accumulation):
    return dpo(path, folder, accumulation, precompute_ref_log_probs=True)


def kto(path, folder, accumulation, **options):
    """TRL pairs rows for the KL term within a rank's batch. One rank gets the pairs of two, and then its own batch."""
    model, tokenizer = language_model(path)
    args = arguments(trl.KTOConfig, folder, accumulation, train_sampling_strategy="sequential", **options)
    args.per_device_train_batch_size = GLOBAL_BATCH // 2
    trainer = of(trl.KTOTrainer)(model=model, args=args, train_dataset=judged(), processing_class=tokenizer)
    trainer.args.per_device_train_batch_size = trainer._train_batch_size = GLOBAL_BATCH // WORLD_SIZE
    return trainer


def kto_apo(path, folder, accumulation):
    return kto(path, folder, accumulation, loss_type="apo_zero_unpaired")


def sft(path, folder, accumulation):
    model, tokenizer = language_model(path)
    args = arguments(trl.SFTConfig, folder, accumulation, max_length=256)
    rows = Dataset.from_dict({"text": texts()})
    return of(trl.SFTTrainer)(model=model, args=args, train_dataset=rows, processing_class=tokenizer)


def reward(path, folder, accumulation):
    """Unsloth's CPU backend loads language models only, so this model is transformers' own."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, dtype=torch.float32)
    args = arguments(trl.RewardConfig, folder, accumulation)
    tokenizer = counting_tokenizer.CountingTokenizer.from_pretrained(path)
    return of(trl.RewardTrainer)(model=model, args=args, train_dataset=pairs(), processing_class=tokenizer)


def unsloth_trainer(path, folder, accumulation):
    """The trained copy of the embeddings gets a learning rate of its own."""
    model, tokenizer = language_model(path, modules_to_save=["embed_tokens", "lm_head"])
    args = arguments(unsloth.UnslothTrainingArguments, folder, accumulation, embedding_learning_rate=1e-2)
    rows = Dataset.from_dict({"text": texts()})
    return of(unsloth.UnslothTrainer)(model=model, args=args, train_dataset=rows, processing_class=tokenizer)


def transformers_trainer(path, folder, accumulation):
    model, tokenizer = language_model(path, full=True)
    rows = Dataset.from_dict({"input_ids": tokenizer(texts())["input_ids"]})
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    args = arguments(TrainingArguments, folder, accumulation)
    return of(Trainer)(model=model, args=args, train_dataset=rows, data_collator=collator)


def classifier(path, folder, accumulation):
    """A head whose loss is a mean, though its `forward` takes what transformers hands to a loss."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=3, dtype=torch.float32)
    tokenizer = counting_tokenizer.CountingTokenizer.from_pretrained(path)
    ids = tokenizer(texts())["input_ids"]
    rows = Dataset.from_dict({"input_ids": ids, "labels": [len(row) % 3 for row in ids]})
    args = arguments(TrainingArguments, folder, accumulation)
    return of(Trainer)(model=model, args=args, train_dataset=rows, processing_class=tokenizer)


class OwnStep(trl.SFTTrainer):
    """A user's trainer with arguments of its own, no others, and its own way through a micro-batch."""

    def __init__(self, model, args, texts, tokenizer):
        rows = Dataset.from_dict({"text": texts})
        super().__init__(model=model, args=args, train_dataset=rows, processing_class=tokenizer)
        self.ranks_seen = []

    def training_step(self, model, inputs, num_items_in_batch=None):
        model.train()
        inputs = self._prepare_inputs(inputs)
        loss = self.compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        self.accelerator.backward(loss)
        return loss.detach()


class Gathering(OwnStep):
    """Another one above it, which wants to know something of all ranks."""

    def compute_loss(self, *args, **kwargs):
        here = torch.tensor([self.accelerator.process_index], device=self.accelerator.device)
        self.ranks_seen.append(self.accelerator.gather_for_metrics(here).tolist())
        return super().compute_loss(*args, **kwargs)


def users_sft(path, folder, accumulation):
    model, tokenizer = language_model(path)
    args = arguments(trl.SFTConfig, folder, accumulation, max_length=256)
    if WORLD_SIZE == 1:
        return Gathering(model, args, texts(), tokenizer)
    plugin = UnslothAcceleratorPlugin(gradient_sync="deferred")
    trainer = accelerated(Gathering)(model, args, texts(), tokenizer, plugin=plugin)
    assert trainer.plugin is plugin
    return trainer


def grpo(path, folder, accumulation, **options):
    model, tokenizer = language_model(path)
    rewards = []

    def share_of_e(completions, **_):
        rewards.append([completion.count("e") / (1 + len(completion)) for completion in completions])
        return rewards[-1]

    args = arguments(
        trl.GRPOConfig, folder, accumulation, num_generations=GENERATIONS, max_completion_length=16, beta=0.1
    )
    trainer = of(trl.GRPOTrainer)(model, share_of_e, args, prompts(), processing_class=tokenizer, **options)
    trainer.rewards_of_this_rank = rewards
    return trainer


def grpo_scripted(path, folder, accumulation):
    """The completions are given, not sampled: a function of the prompt and the place in its group."""
    return grpo(path, folder, accumulation, rollout_func=scripted)


def scripted(prompts, trainer):
    first = trainer.accelerator.process_index * len(prompts)
    completions = []
    for place, prompt in enumerate(prompts, start=first):
        draw = random.Random(f"{prompt}/{place % GENERATIONS}")
        completions.append(text(draw, 10))
    encode = trainer.processing_class
    completion_ids = encode(completions)["input_ids"]
    logprobs = [[0.0] * len(ids) for ids in completion_ids]
    return {"prompt_ids": encode(prompts)["input_ids"], "completion_ids": completion_ids, "logprobs": logprobs}


CASES = {
    case.__name__: case
    for case in (
        dpo,
        dpo_full,
        dpo_precomputed,
        kto,
        kto_apo,
        sft,
        reward,
        unsloth_trainer,
        transformers_trainer,
        classifier,
        users_sft,
        grpo,
        grpo_scripted,
    )
}
