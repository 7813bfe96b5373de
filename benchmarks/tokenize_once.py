"""CPU seconds that data preparation costs on N ranks, with and without `prepare_once`; prints JSON.

    python benchmarks/tokenize_once.py --rows 50000 --num_processes 4

For each case a fresh job with an empty cache builds TRL's trainer on the same rows; what counts is the user and system
time of all ranks and their workers inside `_prepare_dataset`. The target: with `prepare_once`, N ranks cost at most
1.2 times what one rank costs.
"""

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]


def cpu_seconds():
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def rank_main(folder, case, rows):
    """One rank of one case: prepares, and writes what it spent."""
    import datasets
    import trl
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from unsloth_accel.data.prepare_once import prepare_once

    spent = {}

    class Trainer(trl.SFTTrainer):
        def _prepare_dataset(self, dataset, *args, **kwargs):
            prepare = super()._prepare_dataset
            cpu, wall = cpu_seconds(), time.monotonic()
            if case == "once":
                result = prepare_once(lambda shared: prepare(shared, *args, **kwargs), dataset)
            else:
                result = prepare(dataset, *args, **kwargs)
            spent.update(cpu_s=cpu_seconds() - cpu, wall_s=time.monotonic() - wall)
            return result

    words = [
        "data",
        "parallel",
        "training",
        "gives",
        "each",
        "rank",
        "its",
        "own",
        "rows",
        "and",
        "one",
        "copy",
        "of",
        "the",
        "weights",
    ]
    texts = [" ".join(words[(row + index * index) % len(words)] for index in range(200)) for row in range(rows)]
    trainer = Trainer(
        model=AutoModelForCausalLM.from_pretrained(folder / "model"),
        args=trl.SFTConfig(output_dir=str(folder / "out"), max_length=512, use_cpu=True, bf16=False, report_to="none"),
        train_dataset=datasets.Dataset.from_dict({"text": texts}),
        processing_class=AutoTokenizer.from_pretrained(folder / "model"),
    )
    digest = hashlib.sha256()
    for batch in trainer.train_dataset.iter(1000):
        digest.update(json.dumps(batch["input_ids"]).encode())
    spent["rows_sha256"] = digest.hexdigest()
    (folder / f"rank-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(spent))


def run_case(folder, cache, case, num_processes, rows):
    """Starts the ranks of one case and sums what they spent."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(num_processes)]
    command += ["--master_port", "0", "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]
    command += [__file__, "--folder", str(folder), "--case", case, "--rows", str(rows)]
    env = os.environ | {
        "HF_DATASETS_CACHE": str(cache),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
        "TOKENIZERS_PARALLELISM": "false",
    }
    subprocess.run(command, env=env, check=True, stdout=sys.stderr)
    ranks = [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(num_processes)]
    return {
        "cpu_s": round(sum(rank["cpu_s"] for rank in ranks), 2),
        "cpu_s_per_rank": [round(rank["cpu_s"], 2) for rank in ranks],
        "wall_s": round(max(rank["wall_s"] for rank in ranks), 2),
        "identical_rows": len({rank["rows_sha256"] for rank in ranks}) == 1,
    }


def main(rows, num_processes):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run([sys.executable, str(ROOT / "tests" / "tiny_model.py"), str(folder / "model")], check=True)
        one = run_case(folder, folder / "cache-1", "plain", 1, rows)
        plain = run_case(folder, folder / "cache-2", "plain", num_processes, rows)
        once = run_case(folder, folder / "cache-3", "once", num_processes, rows)
        again = run_case(folder, folder / "cache-3", "once", num_processes, rows)
    ratio = {"plain": round(plain["cpu_s"] / one["cpu_s"], 3), "once": round(once["cpu_s"] / one["cpu_s"], 3)}
    figures = {"one_rank": one, "plain": plain, "once": once, "once_second_job": again, "cpu_over_one_rank": ratio}
    print(json.dumps({"rows": rows, "num_processes": num_processes, **figures}, indent=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--num_processes", type=int, default=4)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        rank_main(args.folder, args.case, args.rows)
    else:
        main(args.rows, args.num_processes)
