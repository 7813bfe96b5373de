"""What really runs: each release of Unsloth in an environment of its own, with what its metadata allows beside it.

    python benchmarks/versions.py /tmp/environments                 # all sets, some 5 minutes and up to 6 GB each
    python benchmarks/versions.py /tmp/environments --set 2026.7.6  # one of them
    python benchmarks/versions.py --table                           # the tables of docs/versions.md

No GPU is used. What is checked is in `versions_checks.py`; each check is a process of its own, so that one that fails
leaves the others as they are. A set's line in `results/versions_cpu.jsonl` is replaced, its environment removed.
torch comes from pip's index; where that offers only builds for CUDA, they are what runs, on the CPU.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "versions_cpu.jsonl"
CHECKS = Path(__file__).with_name("versions_checks.py")
TIMEOUT, TOLERANCE = 400, 1e-5
NOT_RUN = "cannot be imported"

PINNED = ("unsloth_zoo", "torch", "transformers", "trl", "datasets")
# By release of Unsloth, what goes with PINNED: the newest that its metadata allows or, for torch, one of its time.
SETS = {
    "2026.10.9": ("2026.10.9", "2.13.0", "5.17.0", "1.15.0", "4.8.5"),
    "2026.10.4": ("2026.10.4", "2.13.0", "5.17.0", "1.15.0", "4.8.5"),
    "2026.10.1": ("2026.10.1", "2.13.0", "5.17.0", "1.13.0", "4.8.5"),
    "2026.9.14": ("2026.9.9", "2.11.0", "5.5.0", "0.24.0", "4.3.0"),
    "2026.7.6": ("2026.7.7", "2.11.0", "5.5.0", "0.24.0", "4.3.0"),
    "2026.3.18": ("2026.3.7", "2.10.0", "5.3.0", "0.24.0", "4.3.0"),
    "2026.1.4": ("2026.1.4", "2.10.0", "4.57.6", "0.24.0", "4.3.0"),
}
# Every release allows these. The second line is what they import besides.
BESIDE = ["accelerate==1.15.0", "peft==0.21.2", "packaging==26.3", "psutil==7.2.2"]
BESIDE += ["bitsandbytes==0.50.2", "torchao==0.18.0", "pillow==12.3.0", "protobuf==7.36.2", "sentencepiece==0.2.3"]
# What torch's builds for the CPU leave out, and what the oldest two import also for a model of text.
EXTRA = {unsloth: ["triton==3.9.0"] for unsloth, pins in SETS.items() if pins[1] == "2.13.0"}
EXTRA |= {unsloth: ["torchvision==0.25.0"] for unsloth in ("2026.3.18", "2026.1.4")}

# In this order. What a "no" in each column of the table means is said in docs/versions.md.
SINGLE = {
    "pins": ["pins"],
    "import": ["backend"],
    "floors": ["floors"],
    "transformers": ["seams", "transformers"],
    "trl": ["seams", "trl"],
    "gpu path": ["gpu_path"],
    "unsloth": ["seams", "unsloth"],
    "fixes": ["fixes"],
}
TRAINED = {"backend": "import", "gpu_path": "gpu path"}


def install(folder, unsloth):
    """A new environment with exactly this set. Unsloth itself without its dependencies: it asks for GPU packages."""
    venv.create(folder, with_pip=True, clear=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    pins = dict(zip(PINNED, SETS[unsloth], strict=True))
    zoo, extra = pins.pop("unsloth_zoo"), EXTRA.get(unsloth, [])
    subprocess.run([*pip, *(f"{name}=={version}" for name, version in pins.items()), *BESIDE, *extra], check=True)
    subprocess.run([*pip, "--no-deps", f"unsloth=={unsloth}", f"unsloth_zoo=={zoo}"], check=True)


def environment(folder):
    return {
        # Not the whole PATH: on a machine without a GPU some releases call `ldconfig` to look for one.
        "PATH": f"{folder / 'bin'}:/usr/bin:/bin",
        "HOME": os.environ["HOME"],
        "ACCELERATE_USE_CPU": "true",
        "CUDA_VISIBLE_DEVICES": "-1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TORCHDYNAMO_DISABLE": "1",  # compiling for the CPU takes minutes and is not the question
        "UNSLOTH_DISABLE_STATISTICS": "1",
    }


def run_check(folder, work, arguments, ranks=1):
    """What the check says, of several ranks the first that says no."""
    out = work / "answer"
    for old in work.glob("answer*"):
        old.unlink()
    config = ["--config_file", str(ROOT / "accelerate_configs" / "cpu_gloo.yaml"), "--main_process_port", "0"]
    launcher = ["-m", "accelerate.commands.accelerate_cli", "launch", *config, "--num_processes", str(ranks)]
    command = [str(folder / "bin" / "python"), *(launcher if ranks > 1 else []), str(CHECKS)]
    with (work / "log").open("a") as log:
        process = subprocess.Popen(
            [*command, arguments[0], str(out), *arguments[1:]],
            cwd=work,
            env=environment(folder),
            stdout=log,
            stderr=log,
        )
        try:
            process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            process.terminate()  # the launcher ends its ranks
            process.wait()
    answers = [json.loads(file.read_text()) for file in sorted(work.glob("answer*"))]
    if len(answers) < ranks:
        answers.append({"ok": False, "why": f"ended without an answer, exit code {process.returncode}"})
    return min(answers, key=lambda answer: answer["ok"])


def compared(answer, reference):
    """`answer`, which says no if it did not train as `reference` did."""
    if not answer["ok"] or not reference["ok"]:
        return answer if reference["ok"] else reference
    pairs = [(a, b) for name in ("loss", "grad_norm") for a, b in zip(answer[name], reference[name], strict=True)]
    difference = max(abs(a - b) for a, b in pairs)
    return answer | {"ok": difference <= TOLERANCE, "why": f"largest difference {difference:.1e}"}


def train(folder, work, which):
    """Ours on one rank against plain Unsloth on one, ours on two ranks against ours on one."""
    plain, one, two = (
        run_check(folder, work, ["train", which, trainer, str(work / "model")], ranks)
        for trainer, ranks in (("plain", 1), ("accelerated", 1), ("accelerated", 2))
    )
    plain["why"] = f"plain Unsloth: {plain['why']}"
    return {f"1 rank, {which}": compared(one, plain), f"2 ranks, {which}": compared(two, one)}


def check_set(parent, unsloth):
    folder = parent / unsloth
    install(folder, unsloth)
    with tempfile.TemporaryDirectory(prefix="versions-") as temporary:
        work = Path(temporary)
        make_model = [str(folder / "bin" / "python"), str(ROOT / "tests" / "tiny_model.py"), str(work / "model")]
        subprocess.run(make_model, env=environment(folder), check=True)
        checks = {name: run_check(folder, work, arguments) for name, arguments in SINGLE.items()}
        for which, needs in TRAINED.items():
            if checks[needs]["ok"]:
                checks |= train(folder, work, which)
            else:
                checks |= {f"{n}, {which}": {"ok": False, "why": NOT_RUN} for n in ("1 rank", "2 ranks")}
        shutil.copy(work / "log", parent / f"{unsloth}.log")
    ask = "import sys, json, importlib.metadata as m; print(json.dumps({p: m.version(p) for p in sys.argv[1:]}))"
    names = ["unsloth", *PINNED, "accelerate", "peft"]
    found = subprocess.run([str(folder / "bin" / "python"), "-c", ask, *names], check=True, capture_output=True)
    shutil.rmtree(folder)
    return {"python": sys.version.split()[0], "versions": json.loads(found.stdout), "checks": checks}


def read_results():
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    return {line["versions"]["unsloth"]: line for line in map(json.loads, lines)}


def table(results):
    """The tables of docs/versions.md: what was installed and what each check said, then why each "no" is one."""
    shown = ("unsloth", "torch", "transformers", "trl")
    columns = [*shown, *next(iter(results.values()))["checks"]]
    rows = [columns, ["---"] * len(columns)]
    for line in results.values():
        answers = [(check["ok"], check["why"]) for check in line["checks"].values()]
        words = ["yes" if ok else "not run" if why == NOT_RUN else "no" for ok, why in answers]
        rows.append([*(line["versions"][name] for name in shown), *words])
    reasons = [["unsloth", "check", "why not"], ["---"] * 3]
    for unsloth, line in results.items():
        faults = {name: check["why"] for name, check in line["checks"].items() if not check["ok"]}
        reasons += [[unsloth, name, why] for name, why in faults.items() if why != NOT_RUN]
    return "\n".join("".join(f"| {' | '.join(row)} |\n" for row in part) for part in (rows, reasons))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="where the environments are made, one after the other")
    parser.add_argument("--set", choices=SETS, action="append", help="only this release (may be given several times)")
    parser.add_argument("--table", action="store_true", help="print the tables of the results and do nothing else")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(read_results()), end="")
        return
    if arguments.folder is None:
        parser.error("`folder` is missing")
    for unsloth in arguments.set or SETS:
        results = read_results() | {unsloth: check_set(arguments.folder.resolve(), unsloth)}
        ordered = [results[name] for name in SETS if name in results]
        RESULTS.write_text("".join(json.dumps(line) + "\n" for line in ordered))
        for name, check in results[unsloth]["checks"].items():
            print(f"{unsloth} {name}: {'yes' if check['ok'] else 'no'} {check['why']}", flush=True)


if __name__ == "__main__":
    main()
