"""Keeps what the docs show of the results that the tests of GPUs wrote: `python benchmarks/keep_results.py FOLDER`.

    export GPU_RESULTS=FOLDER
    pytest -m multigpu tests/trainers tests/recovery/test_faults.py

Writes benchmarks/results/*_h100.jsonl, a line for each case: without the weights and what else only the tests
compare, and of an error its first sentence. The faults, faults_gpu.jsonl, stay as they are.
"""

import json
import shutil
import sys
from pathlib import Path


RESULTS = Path(__file__).parent / "results"
FAULTS = "faults_gpu.jsonl"
# For each result file: the files of the tests, and the keys that stay besides `loss` and `grad_norm` of each step.
KEPT = {
    "matrix_2x": (
        ["one", "two", "plain"],
        "case world_size kind checkpointing accumulation sync hook device_map trainer between_ranks",
    ),
    "matrix_4x": (
        ["one_for_four", "four"],
        "case world_size kind checkpointing accumulation batch trainer between_ranks",
    ),
    "model_families_2x": (
        ["*-one", "*-auto", "*-overlapped", "*-plain"],
        "case world_size family kind sync trainer checkpointing between_ranks choice find_unused_parameters "
        "prefetched",
    ),
    "plan_on_gpus_2x": (["plan_on_gpus"], "case world_size between_ranks forwards plan cuts peaks"),
    "other_trainers_2x": (["single", "ddp_2gpu"], "case world_size class ranks_agree moved"),
}


def main(folder: Path) -> None:
    for name, (patterns, keys) in KEPT.items():
        runs = []
        for file in (file for pattern in patterns for file in sorted(folder.glob(f"{pattern}.jsonl"))):
            for result in map(json.loads, file.read_text().splitlines()):
                kept = {key: result[key] for key in keys.split() if key in result}
                if "error" in result:
                    kept["error"] = result["error"].partition(". ")[0]
                else:
                    kept |= {key: [entry[key] for entry in result["logs"]] for key in ("loss", "grad_norm")}
                runs.append(kept)
        if runs:
            lines = "".join(json.dumps(run) + "\n" for run in runs)
            (RESULTS / f"{name}_h100.jsonl").write_text(lines)
            print(f"{name}: {len(runs)} results")
    if (folder / FAULTS).exists():
        shutil.copy(folder / FAULTS, RESULTS / FAULTS)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
