"""Data preparation by several ranks: python tokenize_once.py gpu_path|trl|second MODEL OUT READ_ONLY FULL_DISK.

`trl` runs TRL's own trainer, as Unsloth's CPU backend does, and `second` the same in a second job. `gpu_path` runs the
trainer that Unsloth generates where there is a GPU, without one.
"""

import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from start import RANK, failure, write_result


path, model_folder, out, read_only, full_disk = sys.argv[1], *map(Path, sys.argv[2:])
seen: dict[str, Any] = {}


if path == "gpu_path":
    import generated_trainers

    generated_trainers.load("sft_trainer")

import counting_tokenizer
import datasets
import trl
from accelerate import PartialState
from transformers import AutoModelForCausalLM

from unsloth_accel.data.prepare_once import prepare_once
from unsloth_accel.fixes import apply_fixes


class Trainer(trl.SFTTrainer):
    """Prepares as our trainers do, and trains as TRL's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with apply_fixes():
            super().__init__(*args, **kwargs)

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        prepare = super()._prepare_dataset
        return prepare_once(lambda rows: prepare(rows, *args, **kwargs), dataset)


class Unfixed(trl.SFTTrainer):
    pass


def texts(count: int, first: int = 0) -> list[dict[str, str]]:
    return [{"text": f"Row {first + index} of the data, {'long ' * (index % 7)}"} for index in range(count)]


def digest(dataset: datasets.Dataset, column: str = "input_ids") -> str:
    return hashlib.sha256(json.dumps(dataset[column][:]).encode()).hexdigest()


def prepared(
    key: str, train: Any, evaluation: Any = None, kind: type[trl.SFTTrainer] = Trainer, **arguments: Any
) -> trl.SFTTrainer:
    """Makes a trainer; notes how many rows this rank tokenised for it, and what rows it would train on."""
    counting_tokenizer.rows = 0
    tokenizer = counting_tokenizer.CountingTokenizer.from_pretrained(model_folder)
    tokenizer.chat_template = tokenizer.chat_template.replace("</s>", arguments.pop("end_of_turn", "</s>"))
    formatting_func = arguments.pop("formatting_func", None)
    arguments = {
        "max_length": 64,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "optim": "adamw_torch",
    } | arguments
    config = trl.SFTConfig(output_dir=str(out / "trainer"), **arguments)
    trainer = kind(
        model=AutoModelForCausalLM.from_pretrained(model_folder),
        args=config,
        train_dataset=train,
        eval_dataset=evaluation,
        processing_class=tokenizer,
        formatting_func=formatting_func,
    )
    seen[key] = {"tokenised": counting_tokenizer.rows, "collator": type(trainer.data_collator).__name__}
    if isinstance(train, datasets.Dataset):
        seen[key] |= {"rows": digest(trainer.train_dataset), "count": len(trainer.train_dataset)}
    if isinstance(evaluation, datasets.Dataset):
        seen[key]["evaluated"] = digest(trainer.eval_dataset)
    return trainer


def on_files(name: str, rows: list[dict[str, str]]) -> datasets.Dataset:
    """A data set as a user has it: the same JSON lines for each rank."""
    file = out / f"{name}.jsonl"
    if RANK == 0:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    PartialState(cpu=True).wait_for_everyone()
    return datasets.load_dataset("json", data_files=str(file), split="train")


def note_worker(row: dict[str, str]) -> str:
    (out / f"worker-{RANK}-{os.getpid()}").touch()
    return row["text"]


def same_rows_prepared_in_other_ways(memory: datasets.Dataset) -> None:
    """Each setting that changes what is prepared changes what is found in the cache."""
    prepared("shorter", memory, max_length=8)
    prepared("packed", memory, packing=True)
    turns = [[{"role": "user", "content": row["text"]}, {"role": "assistant", "content": "Yes."}] for row in texts(60)]
    chats = datasets.Dataset.from_list([{"messages": messages} for messages in turns])
    prepared("chats", chats)
    prepared("chats again", chats)
    prepared("other template", chats, end_of_turn="</s></s>")


def run_trl() -> None:
    memory, evaluation = datasets.Dataset.from_list(texts(300)), datasets.Dataset.from_list(texts(40, first=1000))
    prepared("memory", memory, {"one": evaluation})
    prepared("memory again", memory, evaluation)
    same_rows_prepared_in_other_ways(memory)
    prepared("workers", memory, formatting_func=note_worker, dataset_num_proc=2)
    files = on_files("files", texts(250))
    prepared("files", files, packing=True)
    prepared("unfixed", datasets.Dataset.from_list(texts(200, first=3000)), kind=Unfixed)
    prepared("formatted", memory, formatting_func=lambda row: row["text"].upper())
    lock = threading.Lock()
    prepared("unhashable", memory, formatting_func=lambda row: row["text"].title() if not lock.locked() else "")
    datasets.disable_caching()
    prepared("uncached", memory)
    datasets.enable_caching()
    prepared("different", datasets.Dataset.from_list(texts(100 + RANK)))
    prepared("streaming", datasets.Dataset.from_list(texts(20)).to_iterable_dataset(), max_steps=1)
    unprepared = datasets.Dataset.from_list(texts(500, first=5000))
    many = datasets.Dataset.from_list(texts(5000, first=6000))
    counting_tokenizer.fail_at = 100
    seen["error"] = failure(prepared, "failed", unprepared)
    counting_tokenizer.fail_at = None
    for key, folder in {"read-only": read_only, "full": full_disk}.items():
        if folder.is_dir():
            writable, datasets.config.HF_DATASETS_CACHE = datasets.config.HF_DATASETS_CACHE, folder
            seen[key] = failure(prepared, "failed", many)
            datasets.config.HF_DATASETS_CACHE = writable
    write_result(out / path, seen)
    PartialState().wait_for_everyone()
    counting_tokenizer.die_at = 100
    prepared("killed", unprepared)


def leaves_window(fixed: bool) -> bool:
    """Whether rank 1 leaves a window in which rank 0 raises before rank 0 comes to a barrier of its own."""
    state = PartialState()
    left, released = out / f"left-{fixed}", out / f"released-{fixed}"
    state.wait_for_everyone()
    try:
        with state.main_process_first():
            if RANK == 0:
                raise OSError("disk full")
    except OSError:
        wait_for(left, seconds=60 if fixed else 2)
        released.touch()
        if not fixed:
            state.wait_for_everyone()
    early = not released.exists()
    left.touch()
    return early


def wait_for(file: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.05)


def run_gpu_path() -> None:
    from unsloth.chat_templates import train_on_responses_only

    chats = [{"text": f"<|user|>\nAsk {row['text']}</s>\n<|assistant|>\nAnswer</s>\n"} for row in texts(300)]
    trainer = prepared("files", on_files("chats", chats), on_files("questions", chats[:40]))
    masked = counting_masks(lambda: train_on_responses_only(trainer, "<|user|>\n", "<|assistant|>\n"))
    labels = [digest(dataset, "labels") for dataset in (trainer.train_dataset, trainer.eval_dataset)]
    seen["responses"] = {"labels": labels, "masked": masked}
    prepared("memory", datasets.Dataset.from_list(chats), packing=True)
    write_result(out / path, seen)


def counting_masks(mask: Callable[[], None]) -> int:
    """How many rows pass through `Dataset.map` and `filter` in this process while `mask` runs."""
    # `datasets` itself reports each batch it has done to its progress bar.
    from datasets.utils import tqdm

    done = 0
    update = tqdm.update

    def count(self: Any, number: int = 1) -> Any:
        nonlocal done
        done += number
        return update(self, number)

    tqdm.update = count
    mask()
    tqdm.update = update
    return done


def run_second() -> None:
    """What `run_trl` began with, in a second job. Then a first rank that fails in Accelerate's rank-first window."""
    prepared("memory", datasets.Dataset.from_list(texts(300)))
    before = dict(vars(PartialState))
    seen["leaves window"] = [leaves_window(fixed=False)]
    with apply_fixes():
        seen["leaves window"].append(leaves_window(fixed=True))
    seen["undone"] = dict(vars(PartialState)) == before
    write_result(out / path, seen)


{"trl": run_trl, "second": run_second, "gpu_path": run_gpu_path}[path]()
