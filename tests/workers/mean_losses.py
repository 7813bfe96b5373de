"""What transformers' losses do with the number of labels of a step, and what `correct_mean_loss` makes of it.

Usage: mean_losses.py OUT. One process, without Unsloth: its trainers and models are for the ranks to try.
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import Trainer, TrainingArguments

from unsloth_accel.trainers.arguments import correct_mean_loss


SIZES = {"vocab_size": 64, "hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1, "pad_token_id": 0}
LLAMA = transformers.LlamaConfig(**SIZES, intermediate_size=32, num_key_value_heads=2)
BERT = transformers.BertConfig(**SIZES, intermediate_size=32)
T5 = transformers.T5Config(
    vocab_size=64, d_model=32, d_ff=32, d_kv=16, num_layers=1, num_heads=2, decoder_start_token_id=0
)
IDS = torch.arange(1, 17).reshape(2, 8)


class Own(nn.Module):
    """A user's model. What transformers hands to a loss, it takes and drops."""

    def __init__(self):
        super().__init__()
        self.inner = transformers.LlamaForCausalLM(LLAMA)

    def forward(self, input_ids, labels=None, **kwargs):
        logits = self.inner(input_ids, **kwargs).logits
        return {"loss": nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())}


class Handing(Own):
    """This one hands everything on, labels and all, to a model that has the loss."""

    def forward(self, **kwargs):
        return self.inner(**kwargs)


def adapted():
    return get_peft_model(transformers.LlamaForSequenceClassification(LLAMA), LoraConfig(task_type="SEQ_CLS", r=2))


MODELS = {
    "Llama, causal": (lambda: transformers.LlamaForCausalLM(LLAMA), IDS),
    "Llama, sequences": (lambda: transformers.LlamaForSequenceClassification(LLAMA), torch.tensor([0, 1])),
    "Llama, tokens": (lambda: transformers.LlamaForTokenClassification(LLAMA), IDS % 2),
    "Llama with an adapter, sequences": (adapted, torch.tensor([0, 1])),
    "BERT, masked": (lambda: transformers.BertForMaskedLM(BERT), IDS),
    "BERT, sequences": (lambda: transformers.BertForSequenceClassification(BERT), torch.tensor([0, 1])),
    "ModernBERT, masked": (lambda: transformers.ModernBertForMaskedLM(modern_bert()), IDS),
    "T5": (lambda: transformers.T5ForConditionalGeneration(T5), IDS),
    "a model of the user": (Own, IDS),
    "a model in a model": (Handing, IDS),
}


def modern_bert():
    return transformers.ModernBertConfig(**SIZES, intermediate_size=32, attn_implementation="eager")


def mean(outputs, labels, num_items_in_batch=None):
    return nn.functional.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten())


def divided(outputs, labels, num_items_in_batch=None):
    total = nn.functional.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten(), reduction="sum")
    return total / num_items_in_batch


def handed_on(outputs, labels, **kwargs):
    return divided(outputs, labels, **kwargs)


class Logging(Trainer):
    """Above transformers' loss, which is what it returns."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        return super().compute_loss(model, inputs, *args, **kwargs)


class Named(Trainer):
    """The same, by the name of the class."""

    def compute_loss(self, *args, **kwargs):
        return Trainer.compute_loss(self, *args, **kwargs)


class Kept(Trainer):
    """The same, by way of a variable, on both paths."""

    def compute_loss(self, *args, **kwargs):
        if self.model.training:
            loss = super(Kept, self).compute_loss(*args, **kwargs)  # noqa: UP008
        else:
            compute = super().compute_loss
            loss = compute(*args, **kwargs)
        return loss


class Parallel(Trainer):
    """On one of two paths transformers' loss, as TRL's SFT where sequences are cut over the ranks."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if self.args.parallelism_config is not None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        return divided(model(**inputs), inputs["labels"], num_items_in_batch) * self.args.world_size


class Focal:
    """A function of the user that is an object."""

    def __call__(self, outputs, labels, num_items_in_batch=None):
        return mean(outputs, labels)


class Weighted(Trainer):
    """Instead of transformers' loss."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        return mean(model(**inputs), labels)


def trainer(model, trainer_class=Trainer, loss=None, **arguments):
    args = TrainingArguments("out", use_cpu=True, report_to="none", **arguments)
    made = trainer_class(model, args, compute_loss_func=loss)
    correct_mean_loss(made)
    assert args.average_tokens_across_devices, "the user's own object is not touched"
    return made.args.average_tokens_across_devices


def depends_on_count(model, labels):
    with torch.no_grad():
        few, many = (model(input_ids=IDS, labels=labels, num_items_in_batch=torch.tensor(n))["loss"] for n in (5, 50))
    return not torch.equal(few, many)


def main() -> None:
    found = {}
    for name, (make, labels) in MODELS.items():
        model = make().eval()
        found[name] = {"depends": depends_on_count(model, labels), "averages": trainer(model)}
    causal, classifier = (MODELS[f"Llama, {kind}"][0] for kind in ("causal", "sequences"))
    losses = {"mean": mean, "divided": divided, "handed on": handed_on, "lambda": lambda outputs, labels, **_: mean}
    losses["object"] = Focal()
    found["losses"] = {name: trainer(causal(), loss=loss) for name, loss in losses.items()}
    found["trainers"] = {
        cls.__name__: trainer(classifier(), cls) for cls in (Logging, Named, Kept, Parallel, Weighted)
    }
    found["smoothed"] = trainer(classifier(), label_smoothing_factor=0.1)
    Path(sys.argv[1]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
