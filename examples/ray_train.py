"""Trains a LoRA adapter with Unsloth on Ray: Ray's `TorchTrainer` starts the ranks, not `accelerate launch`.

    pip install "unsloth-accel[gpu,ray]"
    python examples/ray_train.py --model unsloth/Llama-3.2-1B --dataset trl-lib/Capybara \
        --output /shared/outputs --num-workers 8

Model and dataset are names on the Hub, or folders; `--output` is a folder that all machines see.
"""

import argparse
from pathlib import Path

import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dataset", required=True, help="with columns that TRL knows")
    parser.add_argument("--output", required=True, type=Path, help="where checkpoints and the adapter go")
    parser.add_argument("--num-workers", type=int, required=True, help="ranks, one for each GPU")
    parser.add_argument("--max-failures", type=int, default=3, help="how often Ray starts the ranks again")
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps")
    parser.add_argument("--save-steps", type=int, default=20, help="optimizer steps between two checkpoints")
    parser.add_argument("--batch-size", type=int, default=4, help="rows of one micro-batch on each rank")
    parser.add_argument("--max-length", type=int, default=2048, help="tokens at which a row is cut")
    parser.add_argument("--cpu", action="store_true", help="without GPUs, to try it out")
    return parser.parse_args()


def make_trainer(options: argparse.Namespace):
    """On a rank. Imports here, because Unsloth must come first, and not in the process that starts the ranks."""
    from unsloth_accel import UnslothAcceleratedSFTTrainer, UnslothAcceleratorPlugin  # isort: skip  # imports Unsloth
    from datasets import load_dataset
    from trl import SFTConfig
    from unsloth import FastLanguageModel

    model, tokenizer = FastLanguageModel.from_pretrained(
        options.model, max_seq_length=options.max_length, load_in_4bit=False
    )
    model = FastLanguageModel.get_peft_model(model, r=16, lora_alpha=16, random_state=3407)
    return UnslothAcceleratedSFTTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=load_dataset(options.dataset, split="train"),
        args=SFTConfig(
            output_dir=str(options.output),
            per_device_train_batch_size=options.batch_size,
            max_steps=options.steps,
            max_length=options.max_length,
            learning_rate=2e-4,
            logging_steps=1,
            save_steps=options.save_steps,
            save_total_limit=2,
            report_to="none",
            seed=0,
            use_cpu=options.cpu,
        ),
        plugin=UnslothAcceleratorPlugin(resume="auto"),  # where Ray starts the ranks again, training goes on
    )


def train(options: argparse.Namespace) -> None:
    """Runs on each rank."""
    trainer = make_trainer(options)
    loss = trainer.train().training_loss
    trainer.save_model()  # rank 0 writes
    ray.train.report({"step": trainer.state.global_step, "loss": loss})


def main() -> None:
    options = parse_arguments()
    options.output = options.output.absolute()  # each rank has a working directory of its own
    trainer = TorchTrainer(
        train,
        train_loop_config=options,
        scaling_config=ScalingConfig(num_workers=options.num_workers, use_gpu=not options.cpu),
        run_config=RunConfig(
            name="ray",
            storage_path=str(options.output),
            failure_config=FailureConfig(max_failures=options.max_failures),
        ),
    )
    print(trainer.fit().metrics)


if __name__ == "__main__":
    main()
