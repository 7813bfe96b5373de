"""The fault injector: `make faults`, or `python tests/recovery/faults.py [--num_processes N] [--only TEXT]`.

Real Unsloth on N ranks of which one meets a fault, a real one, in step 4 of 6: see tests/workers/faults.py. Then the
run goes on, and its weights are compared with those of the undisturbed run. Each fault is a line in
benchmarks/results/faults_cpu.jsonl, of which benchmarks/tables.py makes the tables in docs/fault-tolerance.md.
With `--config ddp` the ranks are GPUs, and the lines go to faults_gpu.jsonl.
"""

import argparse
import json
import math
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from harness import ROOT, launch


WORKER = ROOT / "tests" / "workers" / "faults.py"
PAGE = ROOT / "docs" / "fault-tolerance.md"
RESULTS = ROOT / "benchmarks" / "results"
PHASES = ("forward", "reduction", "optimizer step", "checkpoint write", "evaluation", "merge")
# Room for the checkpoint of step 2, 72 KiB and 16 a rank, and not for that of step 4 as well.
DISK_KIB, DISK_KIB_A_RANK = 64, 48
LAUNCH_SECONDS = 300
# What we say where a rank meets a fault.
_TELLING = ("unsloth_accel: rank", "PeerError: ", "GradientSyncError: ", "ConfigurationError: ", "all ranks save step")


@dataclass(frozen=True)
class Fault:
    """What happens to which rank, and when."""

    kind: str
    phase: str
    rank: int
    options: Sequence[str] = field(default=(), compare=False)

    @property
    def ends_well(self) -> bool:
        return self.kind == "clock_jump" or (self.kind == "kill" and bool(self.options))

    @property
    def name(self) -> str:
        again = ", --max_restarts 1" if self.options else ""
        return f"{self.kind.replace('_', ' ')}, rank {self.rank}, {self.phase}{again}"


def faults(ranks: int) -> Iterator[Fault]:
    """All that is tried."""
    last = ranks - 1
    for rank in (0, last):
        yield from (Fault("kill", phase, rank) for phase in PHASES)
    yield Fault("kill", "rename", 0)
    yield Fault("kill", "checkpoint written", last)  # while rank 0 waits for it, or renames
    yield Fault("kill", "forward", last, ("--max_restarts", "1"))
    yield Fault("SIGTERM", "forward", last)
    yield Fault("SIGTERM", "evaluation", 0)
    yield Fault("SIGTERM_launcher", "forward", 0)
    yield Fault("SIGSTOP", "forward", last)
    yield Fault("loop", "optimizer step", 0)
    yield Fault("flipped_bit", "step", last)
    yield Fault("clock_jump", "step", last)
    yield Fault("full_disk", "checkpoint write", 0, ("--max_restarts", "1"))


def inject(
    fault: Fault, run: Path, model: Path, ranks: int, config: str, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Lets the run meet the fault, and tells how it ended; where the launcher restarts the ranks, also at what."""
    done = launch(
        WORKER,
        *(model, run, fault.kind, fault.phase, fault.rank),
        num_processes=ranks,
        config=config,
        options=fault.options,
        env=dict(environment or {}),
        timeout=LAUNCH_SECONDS,
        expect_failure=not fault.ends_well,
    )
    ended = time.time()
    began = Path(f"{run}.fault")
    assert began.exists(), f"{fault.name}: something else came before\n{done.stderr[-6000:]}"
    seconds = round(ended - float(began.read_text()), 1)
    met = {"exit_codes": exit_codes(done.stderr, ranks), "seconds": seconds, "said": said(done)}
    return {**met, "end": end_of(run, done.stderr)} if fault.ends_well else met


def exit_codes(launcher: str, ranks: int) -> list[int]:
    """That of each rank, as the launcher tells it; it says nothing of those that ended well."""
    told = re.findall(r"rank +: (\d+) \(local_rank: \d+\)\n +exitcode +: (-?\d+)", launcher)
    codes = {int(rank): int(code) for rank, code in told}
    return [codes.get(rank, 0) for rank in range(ranks)]


def said(done: CompletedProcess[str]) -> str:
    """The line that tells what went wrong, where there is one."""
    lines = [line.strip() for line in done.stderr.splitlines()]
    ours = [line for line in lines if any(text in line for text in _TELLING)]
    others = [line for line in lines if re.search(r"\b\w+Error: ", line)]
    return [*ours, *others, ""][0][:300]


def go_on(runs: Sequence[Path], model: Path, ranks: int, config: str) -> list[dict[str, Any]]:
    """Lets all runs go on to their end, in one start, and tells for each what rank 0 ended with."""
    done = launch(WORKER, model, "go_on", *runs, num_processes=ranks, config=config, timeout=LAUNCH_SECONDS)
    return [end_of(run, done.stderr) for run in runs]


def end_of(run: Path, log: str) -> dict[str, Any]:
    """What rank 0 ended with, and at which step it had begun."""
    went_on = re.search(rf"training goes on from {re.escape(str(run))}/checkpoint-(\d+)", log)
    return {"from_step": int(went_on[1]) if went_on else 0, **json.loads(Path(f"{run}.weights-0").read_text())}


def compare(end: dict[str, Any], undisturbed: dict[str, Any]) -> dict[str, Any]:
    """How far the weights at the end are from those of the undisturbed run, or the error of going on."""
    if "error" in end:
        return {"from_step": end["from_step"], "error": ": ".join(end["error"])[:300]}
    pairs = zip(end["weights"], undisturbed["weights"], strict=True)
    return {"from_step": end["from_step"], "difference": max(abs(ours - theirs) for ours, theirs in pairs)}


def damaged(whole: Path, into: Path) -> Iterator[tuple[str, Path]]:
    """Copies of a run in which one file of the newest checkpoint is cut, or has a flipped bit."""
    newest = max(whole.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    for file in sorted(path.relative_to(whole) for path in newest.rglob("*") if path.is_file()):
        for damage in ("cut", "flipped"):
            run = into / f"{damage}-{file.name}"
            shutil.copytree(whole, run)
            content = bytearray((run / file).read_bytes())
            if damage == "cut":
                del content[-1:]
            else:
                content[len(content) // 2] ^= 1
            (run / file).write_bytes(content)
            yield f"{file.name} {damage}", run


class Campaign:
    """The faults of one number of ranks, in a folder that is removed at the end.

    Args:
        ranks (`int`): How many.
        folder (`Path`): Where the runs are.
        config (`str`, defaults to `"cpu_gloo"`): The short name of a shipped config.
        jobs (`int`, defaults to 1): How many faults are tried at a time.
    """

    def __init__(self, ranks: int, folder: Path, config: str = "cpu_gloo", jobs: int = 1) -> None:
        self._ranks, self._folder, self._config, self._jobs = ranks, folder, config, jobs
        self._model = folder / "model"
        make_model = [sys.executable, str(ROOT / "tests" / "tiny_model.py"), str(self._model)]
        subprocess.run(make_model, check=True, capture_output=True, timeout=120)
        self.whole = folder / "undisturbed"
        launch(WORKER, self._model, self.whole, num_processes=ranks, config=config, timeout=LAUNCH_SECONDS)
        self.undisturbed = json.loads(Path(f"{self.whole}.weights-0").read_text())

    def inject_all(
        self, chosen: Sequence[Fault], environment: Mapping[str, str] | None = None, minutes: float = math.inf
    ) -> list[dict[str, Any]]:
        """Each fault in a start of its own, as far as time allows; then those that did not end well go on, in one."""
        deadline = time.monotonic() + 60 * minutes
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        runs = {folder / f"run-{number}": fault for number, fault in enumerate(chosen)}

        def meet(run: Path) -> dict[str, Any] | None:
            if time.monotonic() > deadline:
                return None
            if runs[run].kind == "full_disk":
                met = self._on_a_full_disk(runs[run], run)
            else:
                met = inject(runs[run], run, self._model, self._ranks, self._config, environment)
            print(runs[run].name, {key: value for key, value in met.items() if key != "end"}, flush=True)
            return met

        with ThreadPoolExecutor(self._jobs) as pool:
            outcomes = zip(runs, pool.map(meet, runs), strict=True)
            tried = {run: met for run, met in outcomes if met is not None}
        left = [run for run, met in tried.items() if "end" not in met]
        ends = dict(zip(left, go_on(left, self._model, self._ranks, self._config) if left else [], strict=True))
        return [self._row(runs[run], met, met.pop("end", None) or ends[run]) for run, met in tried.items()]

    def _row(self, fault: Fault, met: dict[str, Any], end: dict[str, Any]) -> dict[str, Any]:
        return {"fault": fault.name, "ranks": self._ranks, **met, **compare(end, self.undisturbed)}

    def _on_a_full_disk(self, fault: Fault, run: Path) -> dict[str, Any]:
        """What was complete is moved to a disk with room, where the run goes on."""
        run.mkdir()
        size = f"size={DISK_KIB + DISK_KIB_A_RANK * self._ranks}k"
        subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(run)], check=True)
        try:
            met = inject(fault, run, self._model, self._ranks, self._config)
            kept = shutil.copytree(run, run.with_suffix(".kept"))
        finally:
            subprocess.run(["umount", str(run)], check=True)
        run.rmdir()
        kept.rename(run)
        return met

    def damage_all(self) -> list[dict[str, Any]]:
        """Each file of the newest checkpoint, and the data."""
        copies = dict(damaged(self.whole, self._folder / "damaged"))
        changed = self._folder / "changed_data"
        shutil.copytree(self.whole, changed)
        shutil.rmtree(changed / "checkpoint-6")
        copies["the data have changed"] = changed
        ends = go_on(list(copies.values()), self._model, self._ranks, self._config)
        return [
            {"fault": name, "ranks": self._ranks, **compare(end, self.undisturbed)}
            for name, end in zip(copies, ends, strict=True)
        ]


def keep(rows: Sequence[dict[str, Any]], folder: str, results: Path) -> None:
    """Writes the rows in place of those of the same faults, without the folder they were made in."""
    rows = json.loads(json.dumps(rows).replace(f"{folder}/", ""))
    before = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    kept = {(row["ranks"], row["fault"]): row for row in [*before, *rows]}
    results.write_text("".join(json.dumps(row) + "\n" for row in kept.values()))


def show() -> None:
    """Writes the tables into the page, between their markers."""
    tables = runpy.run_path(str(ROOT / "benchmarks" / "tables.py"))
    page = PAGE.read_text()
    for name in ("faults", "faults_on_gpus", "damaged_checkpoints"):
        before, begin, rest = page.partition(f"<!-- {name}: begin -->\n")
        _, end, after = rest.partition(f"<!-- {name}: end -->\n")
        page = f"{before}{begin}{tables[name]()}\n{end}{after}"
    PAGE.write_text(page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_processes", type=int, nargs="+", default=[2, 4], help="how many ranks")
    parser.add_argument("--config", default="cpu_gloo", help="the short name of a shipped config")
    parser.add_argument("--only", default="", help="only faults with this regular expression in their name")
    parser.add_argument("--minutes", type=float, default=math.inf, help="after how many no further fault is begun")
    parser.add_argument("--jobs", type=int, default=1, help="how many faults are tried at a time")
    options = parser.parse_args()
    results = RESULTS / f"faults_{'cpu' if options.config == 'cpu_gloo' else 'gpu'}.jsonl"
    for ranks in options.num_processes:
        with tempfile.TemporaryDirectory(prefix="faults-") as folder:
            campaign = Campaign(ranks, Path(folder), options.config, options.jobs)
            chosen = [fault for fault in faults(ranks) if re.search(options.only, fault.name)]
            if chosen:
                keep(campaign.inject_all(chosen, minutes=options.minutes), folder, results)
            if re.search(options.only, "damage"):
                keep(campaign.damage_all(), folder, results)
    show()


if __name__ == "__main__":
    main()
