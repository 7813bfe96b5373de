"""Prints the tables of docs/gradient_sync.md from the result files: `python benchmarks/tables.py`."""

import json
from pathlib import Path


RESULTS = Path(__file__).parent / "results"
HARDWARE = "2x_h200"


def _read(name: str) -> list[dict]:
    return [json.loads(line) for line in (RESULTS / f"{name}_{HARDWARE}.jsonl").read_text().splitlines()]


def step_times() -> str:
    """Milliseconds of an optimizer step, each mode against plain Unsloth in the same process."""
    lines = [
        "| model, training, rows | gradients | mode | ms/step (rounds) | against plain | peak GiB |",
        "|---|---|---|---|---|---|",
    ]
    for run in _read("gradient_sync"):
        what = "full" if run["ft"] == "full" else f"{run['ft']} r={run['rank']}"
        rows = f"{Path(run['model']).name}, {what}, {run['rows']} {run['lengths']}"
        rounds = ", ".join(f"{value:.0f}" for value in run["step_ms_rounds"])
        lines.append(
            f"| {rows} | {run['gradient_mib']:.0f} MiB | {run['mode']} | {run['step_ms']:.0f} ({rounds}) "
            f"| {run['against_first']:.3f} | {run['peak_gib']:.1f} |"
        )
    return "\n".join(lines)


def matrix() -> str:
    """The last loss of each case on one GPU and on two, and the largest relative difference of losses and norms."""
    results = _read("matrix")
    one = {run["case"]: run for run in results if run["world_size"] == 1}
    plain = {run["case"]: run for run in results if run["world_size"] == 2 and run["trainer"] == "plain"}
    lines = ["| trained | checkpointing | accumulation | 1 GPU, plain | 2 GPUs | largest difference | 2 GPUs, plain |"]
    lines.append("|---|---|---|---|---|---|---|")
    for run in results:
        if run["trainer"] == "accelerated":
            key = f"{run['case']},trainer=plain"
            cells = [run["kind"], run["checkpointing"], run["accumulation"], _last(one[key]), _last(run)]
            cells += [_difference(run, one[key]), _last(plain[key]) if key in plain else ""]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _last(run: dict) -> str:
    return run["error"] if "error" in run else f"{run['loss'][-1]:.4f}"


def _difference(run: dict, reference: dict) -> str:
    if "error" in run or "error" in reference:
        return ""
    pairs = [pair for key in ("loss", "grad_norm") for pair in zip(run[key], reference[key], strict=True)]
    return f"{max(abs(ours - theirs) / theirs for ours, theirs in pairs):.0e}"


if __name__ == "__main__":
    print(step_times(), matrix(), sep="\n\n")
