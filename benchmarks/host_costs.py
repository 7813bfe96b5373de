"""What each rank costs its host, and what a setting would save: A B A B against the default; prints JSON lines.

    python benchmarks/random_llama.py 3b 3b
    python benchmarks/host_costs.py --model 3b --only tokenise threads flags offload
    python benchmarks/host_costs.py --model 3b --only compile

An arm is a set of environment variables. `compile` takes a launch of its own for each round, with cold compile caches.
The other arms alternate within one launch, without compiling, and begin with the same weights, so their losses must
agree. `first_step_s` counts from the launch, or from the making of the trainer where launches are shared; `fetch_ms`
is the host's time for a step's batches and `read_ms` the part of it that waits in Unsloth for two flags from the GPU.
A RESULT line for each candidate, arm and round has the seconds, milliseconds and GiB of the worst rank, and the CPU
seconds and compile processes of all ranks; a SUMMARY line the median ratios to the default.
"""

import argparse
import contextlib
import gc
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from unittest import mock

import psutil


ROOT = Path(__file__).resolve().parents[1]
CORES = len(os.sched_getaffinity(0))
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
WORDS = ["alpha", "beta", "gamma", "the", "a", "of", "tensor", "rank", "gradient", "batch", "loss", "model"]
# SHARE_THREADS and UNREAD_FLAGS are this script's own: cores / ranks; flags not read back from the GPU.
IN_PROCESS = {"UNSLOTH_DATASET_NUM_PROC": "0"}
ARMS = {
    "tokenise": {
        "default": {},
        "in_process": IN_PROCESS,
        "rust_threads": IN_PROCESS | {"TOKENIZERS_PARALLELISM": "true"},
    },
    "threads": {"default": {}, "share": {"SHARE_THREADS": "1"}},
    "flags": {"default": {}, "unread": {"UNREAD_FLAGS": "1"}},
    # Left unset, the fix `activation_offload` would choose.
    "offload": {name: {"UNSLOTH_GC_OFFLOAD_BACKEND": f"unsloth_{name}"} for name in ("default", "stream")},
    "compile": {"default": {}},  # no worker is started, so there is no number of them to try
}
LOADERS = {"offload": "FastModel"}  # which offloads in another way than what loads the others
SUMMED = ("cpu_s", "compile_processes")
RATIOS = ("first_step_s", "step_ms", "peak_gib", "prepare_s", "fetch_ms", "read_ms", *SUMMED)


def family(figure):
    """The sum of a figure over this rank and its living descendants."""
    total = 0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            total += figure(process)
    return total


def cpu_seconds():
    return family(lambda process: sum(process.cpu_times()[:4]))  # user and system, and of children that have ended


def watch_compile_processes(seen):
    """Notes the most that there were at once; one of them forks the others."""
    while True:
        seen.append(family(lambda process: "compile_worker" in " ".join(process.cmdline()[:2])))
        time.sleep(0.5)


def build(loader, options):
    import torch
    import unsloth

    kind = getattr(unsloth, loader)
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    model, tokenizer = kind.from_pretrained(options.model, max_seq_length=options.seq, dtype=dtype, load_in_4bit=False)
    lora = {"r": 16, "lora_alpha": 16, "lora_dropout": 0, "target_modules": LINEAR, "random_state": 3407}
    return kind.get_peft_model(model, use_gradient_checkpointing="unsloth", **lora), tokenizer


def make_trainer(candidate, model, tokenizer, options, seed):
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig

    from unsloth_accel import UnslothAcceleratedSFTTrainer

    on_gpu, prepares = torch.cuda.is_available(), candidate == "tokenise"
    tolist = torch.Tensor.tolist

    class Measured(UnslothAcceleratedSFTTrainer):
        def _prepare_dataset(self, *args, **kwargs):
            began, spent = time.perf_counter(), cpu_seconds()
            rows = super()._prepare_dataset(*args, **kwargs)
            self.prepared = {"prepare_s": time.perf_counter() - began, "cpu_s": cpu_seconds() - spent}
            return rows

        def get_batch_samples(self, *args, **kwargs):
            began, waited = time.perf_counter(), []

            def timed(tensor):
                if tensor.dtype != torch.bool or tensor.numel() != 2:
                    return tolist(tensor)
                since = time.perf_counter()
                flags = [False, False] if "UNREAD_FLAGS" in os.environ else tolist(tensor)
                waited.append(time.perf_counter() - since)
                return flags

            with mock.patch.object(torch.Tensor, "tolist", timed):
                result = super().get_batch_samples(*args, **kwargs)
            self.host_seconds.append((time.perf_counter() - began, sum(waited)))
            return result

    class Clock(TrainerCallback):
        """Marks each step's end in the GPU's queue: waiting for the GPU would hide what else waits for it."""

        def on_step_end(self, args, state, control, **kwargs):
            mark = torch.cuda.Event(enable_timing=True) if on_gpu else time.perf_counter()
            if on_gpu:
                mark.record()
                if not trainer.marks:
                    torch.cuda.synchronize()
            trainer.first_step = trainer.first_step or time.time()
            trainer.marks.append(mark)

    quiet = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "logging_steps": options.steps}
    numbers = {"learning_rate": 1e-5, "seed": 1, "optim": "adamw_torch", "bf16": on_gpu}
    numbers |= {"per_device_train_batch_size": options.rows, "gradient_accumulation_steps": 2}
    numbers |= {"max_steps": options.steps, "max_length": options.seq}
    count = 2 * options.steps * options.rows * int(os.environ.get("WORLD_SIZE", "1"))
    count, words = (options.tokenise_rows, 100) if prepares else (count, options.seq + 8)
    draw = random.Random(seed if prepares else 1)  # new rows, because `datasets` remembers what it has prepared
    trainer = Measured(
        model=model,
        args=SFTConfig("out", **quiet, **numbers),
        train_dataset=Dataset.from_list([{"text": " ".join(draw.choices(WORDS, k=words))} for _ in range(count)]),
        processing_class=tokenizer,
        callbacks=[Clock()],
    )
    trainer.marks, trainer.host_seconds, trainer.first_step = [], [], None
    return trainer


def run(candidate, model, tokenizer, options, seed):
    import torch

    began, spent = (options.began, 0) if candidate == "compile" else (time.time(), cpu_seconds())
    trainer = make_trainer(candidate, model, tokenizer, options, seed)
    if candidate == "tokenise":
        trainer.applied_fixes.undo()
        return trainer.prepared | {"workers": trainer.args.dataset_num_proc}
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    loss = trainer.train().training_loss
    trainer.applied_fixes.undo()
    kept = trainer.marks[len(trainer.marks) // 3 :]
    pairs = list(zip(kept, kept[1:], strict=False))
    fetched, read = zip(*trainer.host_seconds[1:], strict=True)
    return {
        "first_step_s": trainer.first_step - began,
        "step_ms": statistics.median(
            a.elapsed_time(b) if torch.cuda.is_available() else 1000 * (b - a) for a, b in pairs
        ),
        "cpu_s": cpu_seconds() - spent,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0,
        "fetch_ms": 1000 * statistics.median(fetched),
        "read_ms": 1000 * statistics.median(read),
        "loss": loss,
    }


def rank_main(options):
    """One rank of one launch: each candidate's arms in turn, a line for each run in this rank's file."""
    seen = []
    threading.Thread(target=watch_compile_processes, args=(seen,), daemon=True).start()
    share = max(1, CORES // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    from unsloth_accel import UnslothAcceleratedSFTTrainer  # noqa: F401  # isort: skip
    import torch
    from unsloth_zoo import gradient_checkpointing as checkpointing

    model, tokenizer = build(LOADERS.get(options.only[0], "FastLanguageModel"), options)
    trained = [p for p in model.parameters() if p.requires_grad]
    weights, forward = [p.detach().cpu().clone() for p in trained], model.forward
    compiles = options.only == ["compile"]
    plan = [("compile", options.round, "default")]
    if not compiles:
        plan = [(name, number, arm) for name in options.only for number in range(options.rounds) for arm in ARMS[name]]
        plan.insert(0, (options.only[-1], -1, "default"))  # to warm up
    for seed, (candidate, number, arm) in enumerate(plan, start=100):
        for parameter, value in zip(trained, weights, strict=True):
            parameter.data.copy_(value)
        checkpointing.NONREENTRANT_OFFLOADER = None  # made anew, from the environment, at the next forward
        with mock.patch.dict(os.environ, ARMS[candidate][arm]):
            if not compiles:  # the launcher set one thread
                torch.set_num_threads(share if "SHARE_THREADS" in os.environ else 1)
            result = run(candidate, model, tokenizer, options, seed)
        model.forward = forward  # Accelerate wraps it in autocast, anew in each run
        gc.collect()
        torch.cuda.empty_cache()
        offloader = checkpointing.NONREENTRANT_OFFLOADER
        result |= {"offload": offloader.stats} if offloader else {}
        result |= {"compile_processes": max(seen)} if compiles else {}
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
        key = {"candidate": candidate, "round": number, "arm": arm, "gpu": gpu, "torch": torch.__version__}
        key |= {"model": Path(options.model).name, "compiled": os.environ.get("UNSLOTH_COMPILE_DISABLE") != "1"}
        if number >= 0:
            with (options.folder / f"{os.environ.get('RANK', '0')}.jsonl").open("a") as out:
                out.write(json.dumps(key | result) + "\n")


def launch(options, candidates, number=0):
    """Starts the ranks of one launch; prints and returns their results, and the error if it failed."""
    with tempfile.TemporaryDirectory(prefix="hc") as name:
        folder, ranks = Path(name), str(options.num_processes)
        command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--num_processes", ranks]
        command += ["--multi_gpu"] if options.num_processes > 1 else []
        command += ["--num_machines", "1", "--main_process_port", "0", "--mixed_precision", "no"]
        command += ["--dynamo_backend", "no", str(Path(__file__).resolve()), "--folder", name, "--only", *candidates]
        command += ["--model", str(Path(options.model).resolve()), "--round", str(number)]
        command += ["--began", str(time.time())]
        for key in ("rounds", "rows", "seq", "steps", "tokenise_rows"):
            command += [f"--{key}", str(getattr(options, key))]
        # Unsloth takes one compile worker where only NVIDIA_VISIBLE_DEVICES names the GPUs, so this one does, too.
        env = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, range(options.num_processes)))} | os.environ
        env.pop("OMP_NUM_THREADS", None)  # the launcher's default
        env |= {"PYTHONPATH": os.pathsep.join([str(ROOT), env.get("PYTHONPATH", "")]), "HF_HUB_OFFLINE": "1"}
        env |= {"UNSLOTH_DISABLE_STATISTICS": "1", "UNSLOTH_MEGA_CACHE": "0", "HF_DATASETS_CACHE": f"{name}/data"}
        # Unsloth forgets TORCHINDUCTOR_CACHE_DIR at import; Inductor's default lies in TMPDIR.
        env |= {"TMPDIR": name, "TRITON_CACHE_DIR": f"{name}/triton", "UNSLOTH_COMPILE_LOCATION": f"{name}/compiled"}
        env |= {} if candidates == ["compile"] else {"UNSLOTH_COMPILE_DISABLE": "1"}
        error = wait(command, folder, env, options.timeout)
        lines = [file.read_text().splitlines() for file in sorted(folder.glob("*.jsonl"))]
    runs = [combine([json.loads(line) for line in of_ranks]) for of_ranks in zip(*lines, strict=False)]
    runs += [{"candidate": " ".join(candidates), "round": number, "error": error}] if error else []
    for result in runs:
        print("RESULT " + json.dumps(result), flush=True)
    return runs


def wait(command, folder, env, timeout):
    """None if the launch went well, else the end of what it wrote."""
    log = folder / "log"
    with log.open("w") as out:
        process = psutil.Popen(command, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        try:
            reason = f"exit code {process.wait(timeout)}"
        except psutil.TimeoutExpired:
            reason = f"not done after {timeout} s"
            for member in [*process.children(recursive=True), process]:
                with contextlib.suppress(psutil.Error):
                    member.kill()
            process.wait()
    said = log.read_text(errors="replace")
    errors = re.findall(
        r"^(?:\[\w+\]: *)?\w+(?:Error|Exception)\b.*", said, re.MULTILINE
    )  # of the ranks, not the launcher
    return None if reason == "exit code 0" else f"{reason}: {' | '.join(errors[:3]) or said[-1500:]}"


def combine(ranks):
    """CPU seconds and processes add up, the loss is that of all ranks, and of the rest the worst rank counts."""
    result = dict(ranks[0])
    for key, value in result.items():
        if key in SUMMED:
            result[key] = round(sum(rank[key] for rank in ranks), 2)
        elif isinstance(value, float) and key != "loss":
            result[key] = round(max(rank[key] for rank in ranks), 3)
    return result


def summary(runs):
    """By candidate and arm: the median over the rounds of each figure's ratio to the default of the same round."""
    good = {(r["candidate"], r["arm"], r["round"]): r for r in runs if "error" not in r}
    table = {}
    for (candidate, arm, number), mine in good.items():
        default = good.get((candidate, "default", number), {})
        for key in RATIOS if arm != "default" else ():
            if mine.get(key) and default.get(key):
                table.setdefault(f"{candidate} {arm}", {}).setdefault(key, []).append(mine[key] / default[key])
        if arm != "default" and "loss" in mine and default:
            difference = abs(mine["loss"] / default["loss"] - 1)
            table.setdefault(f"{candidate} {arm}", {}).setdefault("loss_difference", []).append(difference)
    return {
        name: {key: float(f"{statistics.median(values):.4g}") for key, values in row.items()}
        for name, row in table.items()
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--num_processes", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--rows", type=int, default=4, help="rows of one micro-batch on each GPU")
    parser.add_argument("--seq", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--tokenise_rows", type=int, default=20_000)
    parser.add_argument("--timeout", type=float, default=300, help="seconds for one launch")
    for name, kind in (("--folder", Path), ("--round", int), ("--began", float)):
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder:
        rank_main(options)
        return
    runs = []
    together = [name for name in options.only if name not in ("compile", *LOADERS)]
    for candidates in [together, *([name] for name in LOADERS if name in options.only)]:
        runs += launch(options, candidates) if candidates else []
    for number in range(options.rounds if "compile" in options.only else 0):
        runs += launch(options, ["compile"], number)
    about = {"ranks": options.num_processes, "cores": CORES, "failed": sum("error" in r for r in runs)}
    print("SUMMARY " + json.dumps(about | {"model": options.model, "ratios": summary(runs)}))


if __name__ == "__main__":
    main()
