"""Prints the tables of the docs from the result files: `python benchmarks/tables.py`."""

import json
from itertools import groupby
from pathlib import Path
from statistics import median

from unsloth_accel.bench.table import REFERENCE, by_contender, by_workload, ratios
from unsloth_accel.bench.table import tables as comparison_tables


RESULTS = Path(__file__).parent / "results"
NOT_RUN = "No results yet."


def _read(name: str) -> list[dict]:
    return [json.loads(line) for line in (RESULTS / f"{name}.jsonl").read_text().splitlines()]


def _table(head: str, rows: list[list[str]]) -> str:
    return "\n".join([head, "|---" * (head.count("|") - 1) + "|", *(f"| {' | '.join(row)} |" for row in rows)])


def _on_one_gpu(results: list[dict]) -> dict[str, dict]:
    return {run["case"]: run for run in results if run["world_size"] == 1}


def step_times(name: str = "gradient_sync_2x_h200") -> str:
    """Milliseconds of an optimizer step, each mode against the first one, which ran in the same process."""
    rows = []
    for run in _read(name):
        trained = "full" if run["ft"] == "full" else f"{run['ft']} r={run['rank']}"
        rounds = ", ".join(f"{value:.0f}" for value in run["step_ms_rounds"])
        ratios = ", ".join(f"{value:.3f}" for value in run["against_rounds"])
        rows.append(
            [
                f"{run['model']} {trained}, {run['work']}",
                run["mode"],
                f"{run['step_ms']:.0f} ({rounds})",
                f"{run['against']:.3f} ({ratios})",
                f"{run['peak_gib']:.2f}",
            ]
        )
    return _table("| model, work | mode | ms/step (rounds) | against the first mode (rounds) | peak GiB |", rows)


def packed_attention() -> str:
    """The same for the fix of that name."""
    return step_times("packed_attention_2x_h200")


def matrix() -> str:
    """The last loss of each case on one GPU and on two, and the largest relative difference of losses and norms."""
    results = _read("matrix_2x_h100")
    one = _on_one_gpu(results)
    plain = {run["case"]: run for run in results if run["world_size"] == 2 and run["trainer"] == "plain"}
    rows = []
    for run in results:
        if run["trainer"] == "accelerated":
            same = f"kind={run['kind']},checkpointing={run['checkpointing']}"
            reference = one[f"{same if run['sync'] == 'overlapped' else run['case']},trainer=plain"]
            special = [run["sync"]] if run["sync"] != "auto" else []
            special += [f"{key}={run[key]}" for key in ("hook", "device_map") if run[key] not in ("no", "")]
            without_us = plain.get(f"{run['case']},trainer=plain")
            rows.append(
                [
                    run["kind"],
                    run["checkpointing"],
                    run["accumulation"],
                    " ".join(special),
                    _last(reference),
                    _last(run),
                    f"{_difference(run, reference):.0e}",
                    "" if without_us is None else _last(without_us),
                ]
            )
    head = "| trained | checkpointing | accumulation | | 1 GPU, plain | 2 GPUs | largest difference | 2 GPUs, plain |"
    return _table(head, rows)


def four_gpus() -> str:
    """The same on one GPU and on four."""
    results = _read("matrix_4x_h100")
    one = _on_one_gpu(results)
    rows = []
    for run in results:
        if run["world_size"] == 4:
            reference = one[f"{run['case']},trainer=plain"]
            figures = [_last(reference), _last(run), f"{_difference(run, reference):.0e}"]
            rows.append([run["kind"], run["checkpointing"], run["accumulation"], *figures])
    return _table("| trained | checkpointing | accumulation | 1 GPU, plain | 4 GPUs | largest difference |", rows)


def model_families() -> str:
    """For each family the largest difference to one GPU without checkpointing, over all its cases on two."""
    results = _read("model_families_2x_h100")
    one = _on_one_gpu(results)
    rows = []
    for (family, kind), runs in groupby(sorted(results, key=_family), key=_family):
        two = [run for run in runs if run["world_size"] == 2]
        reference = one[f"family={family},kind={kind},checkpointing=false,trainer=plain"]
        by_sync = {
            sync: [run for run in two if run["trainer"] == "accelerated" and run["sync"] == sync]
            for sync in ("auto", "overlapped")
        }
        differences = [f"{max(_difference(r, reference) for r in cases):.0e}" for cases in by_sync.values()]
        search = "yes" if by_sync["overlapped"][0]["find_unused_parameters"] else "no"
        (plain,) = (run for run in two if run["trainer"] == "plain")
        rows.append([family, kind, _last(reference), *differences, search, _last(plain)])
    head = "| model | trained | 1 GPU, plain | deferred | overlapped | unused searched | 2 GPUs, plain |"
    return _table(head, rows)


def other_trainers() -> str:
    """The last loss of each trainer on one GPU and on two, and the largest relative difference of losses and norms."""
    results = _read("other_trainers_2x_h100")
    one = _on_one_gpu(results)
    rows = []
    for run in results:
        reference = one.get(run["case"].partition("/")[0])
        if run["world_size"] == 2 and reference is not None:  # what is sampled has none
            rows.append([run["case"], _last(reference), _last(run), f"{_difference(run, reference):.0e}"])
    return _table("| case | 1 GPU | 2 GPUs | largest difference |", rows)


def host_costs() -> str:
    """What each setting costs, one value for each round."""
    runs = _read("host_costs_2x_h100")
    figures = {"prepare_s": "seconds to prepare", "first_step_s": "seconds to the first step", "step_ms": "ms/step"}
    figures |= {"read_ms": "ms of it reading flags", "cpu_s": "CPU seconds", "peak_gib": "peak GiB"}
    rows = []
    for name, arm in dict.fromkeys((run["candidate"], run["arm"]) for run in runs):
        rounds = [run for run in runs if (run["candidate"], run["arm"]) == (name, arm)]
        cells = [", ".join(f"{run[key]:.4g}" for run in rounds if key in run) for key in figures]
        rows.append([name, arm, *cells])
    return _table(f"| what | setting | {' | '.join(figures.values())} |", rows)


def imbalance() -> str:
    """The slowest rank against the mean, in the order of the rows and balanced; and the time where rows are padded."""
    rows = []
    for run in _read("plan_rows_cpu"):
        if "planned_rows" not in run:
            shape = f"{run['ranks']} x {run['slots']} x {run['rows']}"
            keys = ("plain", "balanced", "balanced_one_batch", "bound", "time_over_plain")
            figures = [f"{run[key]:.3f}" if key in run else "" for key in keys]
            rows.append([run["lengths"] + ", padded" * run["padded"], shape, *figures])
    head = "| lengths | ranks x slots x rows | plain | balanced | one batch a rank | bound | time, balanced / plain |"
    return _table(head, rows)


def planning() -> str:
    """What an epoch of planning costs each rank."""
    rows = []
    for run in _read("plan_rows_cpu"):
        if "planned_rows" in run:
            shape = f"{run['ranks']} x {run['slots']} x {run['rows']}"
            rows.append([shape, f"{run['cpu_s']:.1f}", f"{run['ms_per_step']:.2f}", f"{run['peak_mib']}"])
    return _table("| ranks x slots x rows | CPU seconds an epoch | ms a step | MiB |", rows)


def compared() -> list[dict]:
    """What `compare.py` measured: the runs of all files `compare_*.jsonl`."""
    return [run for runs in _by_machine() for run in runs]


def _by_machine() -> list[list[dict]]:
    """The same by file: machines with one GPU, with two."""
    return [_read(file.stem) for file in sorted(RESULTS.glob("compare_*.jsonl"))]


def comparison() -> str:
    """A table for each workload."""
    return comparison_tables(compared()) or NOT_RUN


def overview() -> str:
    """A line for each workload: how many times as fast as the reference each contender is."""
    rows = []
    for works in by_workload(compared()):
        runs, first = by_contender(works), works[0]
        if REFERENCE in runs:
            reference = runs[REFERENCE]
            speeds = {name: f"{times_as_fast(own, reference):.2f}" for name, own in runs.items()}
            others = [f"{name} {speed}" for name, speed in speeds.items() if name not in (REFERENCE, "keep", "auto")]
            rate = f"{median(run['tokens_per_s'] for run in reference):,.0f}"
            ours = [speeds.get("keep", ""), speeds.get("auto", "")]
            rows.append([what(first), machine(first), str(len(reference)), rate, *ours, ", ".join(others)])
    return _table("| model, work | GPUs | rounds | varlen: tokens/s | keep | auto | others |", rows)


def times_as_fast(runs: list[dict], reference: list[dict]) -> float:
    """The median over the rounds that both have."""
    return 1 / median(ratios(runs, reference))


def what(run: dict) -> str:
    """What was trained, without what is the same in most workloads."""
    rows = "" if run["sequence"] == 2048 else f", up to {run['sequence']}"
    compiled = ", compiled" if run["compiled"] else ""
    return f"{run['model']} {run['finetuning']}, {run['work'].removesuffix(':padding-free')}{rows}{compiled}"


def machine(run: dict) -> str:
    """How many of which GPUs, in words."""
    held = f" of {run['card_gib']:g} GiB" if run["card_gib"] else ""
    return f"{run['world_size']} x {run['device'].split()[1]}{held}"


def scaling() -> str:
    """Real tokens per second and GPU: on one, on several of the same machine, and the share that is left."""
    rows = []
    for runs in _by_machine():
        works = _key("model", "finetuning", "sequence", "work", "compiled", "card_gib", "contender")
        for _, same in groupby(sorted(runs, key=works), key=works):
            rows += _shares_of_one_gpu(list(same))
    head = "| model, work | contender | tokens/s on one GPU | GPUs | tokens/s of each | of one GPU's |"
    return _table(head, rows) if rows else NOT_RUN


def _shares_of_one_gpu(runs: list[dict]) -> list[list[str]]:
    rates = {
        ranks: median(run["tokens_per_s"] for run in runs if run["world_size"] == ranks) / ranks
        for ranks in sorted({run["world_size"] for run in runs})
    }
    if 1 not in rates:
        return []
    one, first = rates.pop(1), runs[0]
    return [
        [
            what(first),
            first["contender"],
            f"{one:,.0f}",
            machine({**first, "world_size": ranks}),
            f"{rate:,.0f}",
            f"{100 * rate / one:.1f} %",
        ]
        for ranks, rate in rates.items()
    ]


def starts() -> str:
    """Seconds from the launch to the end of the first step, of each launch on a machine with several GPUs."""
    launches: dict[tuple[str, ...], dict] = {}
    for runs in (*_by_machine(), _read("starts_4x_h200")):
        if any(run["world_size"] > 1 for run in runs):
            for run in runs:
                launches.setdefault(_key("call", "world_size", "ready_s")(run), run)
    rows = []
    for run in launches.values():
        compiled = f"compiled, {run['cache']} cache" if run["compiled"] else "not compiled"
        launch = [what({**run, "compiled": False}), compiled, run["contender"], run["call"]]
        rows.append([*launch, machine(run), f"{run['ready_s'] + run['first_step_s']:.0f}"])
    return _table("| model, work | | contender | call | GPUs | seconds |", rows)


def step_profile() -> str:
    """How the time of a step divides."""
    rows = []
    for run in _read("profile_step_1x_h200"):
        kinds = ("products with weights", "products with adapters", "attention", "other")
        spent = [f"{run['divided_ms'][kind]:.0f}" for kind in kinds]
        at_peak = f"{run['ms_of_products_with_weights_at_peak']:.0f}"
        work = f"{run['model']} {run['finetuning']}, {run['work'].removesuffix(':padding-free')}"
        whole = [f"{run['ms']:.0f}", f"{100 * run['mfu']:.1f} %", at_peak]
        rows.append([work, run["contender"], *whole, *spent, f"{run['idle_ms']:.0f}"])
    head = "| model, work | contender | ms/step | MFU | products with weights, at the peak | as they are "
    return _table(head + "| with adapters | attention | other kernels | idle |", rows)


def _key(*names: str):
    return lambda run: tuple(str(run[name]) for name in names)


def faults(name: str = "faults_cpu") -> str:
    """What a rank met, how the run ended, and how it went on."""
    rows = []
    for run in _read(name):
        if "exit_codes" in run:
            codes = " ".join(map(str, run["exit_codes"]))
            seconds, step = f"{run['seconds']:.0f}", str(run["from_step"])
            rows.append([run["fault"], str(run["ranks"]), codes, seconds, step, _went_on(run)])
    head = (
        "| fault | ranks | exit code of each | seconds until all have ended | goes on from step | largest difference |"
    )
    return _table(head, rows)


def faults_on_gpus() -> str:
    """The same where the ranks are GPUs."""
    return faults("faults_gpu")


def damaged_checkpoints() -> str:
    """What was changed between two runs, and how the second one went on."""
    rows = []
    for run in _read("faults_cpu"):
        if "exit_codes" not in run:
            rows.append([run["fault"], str(run["ranks"]), str(run["from_step"]), _went_on(run)])
    return _table("| what | ranks | goes on from step | largest difference |", rows)


def _went_on(run: dict) -> str:
    if "error" in run:
        return run["error"].partition(". ")[0]
    return f"{run['difference']:.0e}" if run["difference"] else "0"


def _family(run: dict) -> tuple[str, str]:
    return run["family"], run["kind"]


def _last(run: dict) -> str:
    return run["error"] if "error" in run else f"{run['loss'][-1]:.4f}"


def _difference(run: dict, reference: dict) -> float:
    """The largest relative one of losses and gradient norms."""
    pairs = [pair for key in ("loss", "grad_norm") for pair in zip(run[key], reference[key], strict=True)]
    return max(abs(ours - theirs) / theirs for ours, theirs in pairs)


if __name__ == "__main__":
    tables = (step_times, packed_attention, matrix, four_gpus, model_families, other_trainers, host_costs, imbalance)
    tables += (planning, overview, comparison, scaling, starts, step_profile)
    tables += (faults, faults_on_gpus, damaged_checkpoints)
    print(*(table() for table in tables), sep="\n\n")
