"""The one way the tests start ranks: real `accelerate launch`, on a free port, with an end.

Each rank's output goes to a file of its own, so that what a test reads is not interleaved and a failure can show the
failing rank's traceback alone.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil


ROOT = Path(__file__).resolve().parents[1]
RUN_RANK = Path(__file__).with_name("run_rank.py")
GRACE_SECONDS = 5

# What the head of cpu_gloo.yaml asks for: Accelerate does not pass `use_cpu` on to more than one process. And nothing
# is compiled: to import torch's compiler alone takes a rank 2 s.
ON_CPU = {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": "-1", "TORCHDYNAMO_DISABLE": "1"}


def launch(
    target: str | Path,
    *args: object,
    num_processes: int | None = 2,
    config: str = "cpu_gloo",
    options: Sequence[str] = (),
    within: Sequence[str] = (),
    env: dict[str, str] | None = None,
    timeout: float = 180,
    expect_failure: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Runs a script or a module on several ranks and waits for it, in a new and empty working directory.

    Args:
        target (`str` or `Path`): A path that ends in `.py`, or the name of a module.
        args: The arguments of the script, turned into strings.
        num_processes (`int`, *optional*, defaults to 2): The number of ranks. `None` leaves it to the config.
        config (`str`, defaults to `"cpu_gloo"`): The short name of a shipped config. With `cpu_gloo` no GPU is used.
        options (`Sequence[str]`, *optional*): More options of `accelerate launch`.
        within (`Sequence[str]`, *optional*): A command that becomes the one after it, as `nsenter` does.
        env (`dict[str, str]`, *optional*): Variables that override those set here.
        timeout (`float`, defaults to 180): After so many seconds every process is ended, and each rank's stack shown.
        expect_failure (`bool`, defaults to `False`): Whether the exit code has to be other than 0, instead of 0.

    Returns:
        `subprocess.CompletedProcess`: With the exit code, the ranks' standard output, rank after rank, and their
        standard error likewise, followed by what the launcher itself said.

    Raises:
        AssertionError: On a timeout or an unexpected exit code, with the traceback of the rank that failed first.
    """
    with tempfile.TemporaryDirectory(prefix="launch-") as folder:
        work = Path(folder)
        count = [] if num_processes is None else ["--num_processes", str(num_processes)]
        command = [*within, *_command(target, args, [*_config(config), *count, *_logs(work / "ranks"), *options])]
        with (work / "launcher.out").open("w") as out, (work / "launcher.err").open("w") as err:
            process = subprocess.Popen(
                command,
                cwd=_folder(work / "cwd"),
                env=_environment(work, config) | (env or {}),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
            try:
                returncode: int | None = process.wait(timeout)
            except subprocess.TimeoutExpired:
                returncode = None
            finally:
                _end(process)
        stdout, stderr = (_rank_logs(work / "ranks", stream) for stream in ("stdout", "stderr"))
        said, complained = (_own_lines(work / f"launcher.{stream}") for stream in ("out", "err"))
    if returncode is None:
        raise AssertionError(f"{target}: not done after {timeout} s\n{_last_words(complained, stdout, stderr)}")
    if (returncode != 0) != expect_failure:
        raise AssertionError(f"{target}: exit code {returncode}\n{_last_words(complained, stdout, stderr)}")
    return subprocess.CompletedProcess(
        command, returncode, "".join([*stdout.values(), said]), "".join([*stderr.values(), complained])
    )


def rank_results(out: Path, num_processes: int = 2) -> list[dict[str, Any]]:
    """What each rank of a worker wrote about itself, to OUT-<rank>.json."""
    return [json.loads(Path(f"{out}-{rank}.json").read_text()) for rank in range(num_processes)]


def free_port() -> int:
    """A port that nothing listens on, for the ranks that a test starts without a launcher."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _command(target: str | Path, args: Sequence[object], options: list[str]) -> list[str]:
    # `accelerate-launch`, which is `accelerate launch` without the imports of its other commands: 3 s less each time.
    launcher = [sys.executable, "-m", "accelerate.commands.launch", *options]
    script = [str(Path(target).resolve())] if str(target).endswith(".py") else ["-m", str(target)]
    return [*launcher, str(RUN_RANK), *script, *map(str, args)]


def _config(name: str) -> list[str]:
    return ["--config_file", str(ROOT / "accelerate_configs" / f"{name}.yaml"), "--main_process_port", "0"]


def _logs(folder: Path) -> list[str]:
    return ["--tee", "3", "--log_dir", str(folder)]


def _environment(work: Path, config: str) -> dict[str, str]:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        **(ON_CPU if config == "cpu_gloo" else {}),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONFAULTHANDLER": "1",  # SIGABRT prints every thread's stack
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",  # a killed rank's last words are in its file
        "TOKENIZERS_PARALLELISM": "false",
        "UNSLOTH_COMPILE_LOCATION": str(work / "compiled"),
        "UNSLOTH_DISABLE_STATISTICS": "1",
    }


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends what is still running. The ranks are sessions of their own, so a signal to the group would miss them."""
    if process.poll() is not None:
        return
    launcher = psutil.Process(process.pid)
    ranks = launcher.children(recursive=True)
    for rank in ranks:
        _signal(rank, signal.SIGABRT)
    psutil.wait_procs(ranks, timeout=GRACE_SECONDS)
    for member in [*launcher.children(recursive=True), *ranks, launcher]:
        _signal(member, signal.SIGKILL)
    process.wait()


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    if process.is_running():
        process.send_signal(number)


def _rank_logs(folder: Path, stream: str) -> dict[int, str]:
    """What each rank wrote, by rank: torchrun writes <run>/attempt_<n>/<rank>/<stream>.log."""
    files = sorted(folder.glob(f"*/attempt_*/*/{stream}.log"), key=lambda file: int(file.parent.name))
    return {int(file.parent.name): file.read_text(errors="replace") for file in files}


def _own_lines(file: Path) -> str:
    """What the launcher wrote, without its copies of the ranks' lines."""
    lines = file.read_text(errors="replace").splitlines(keepends=True)
    return "".join(line for line in lines if not re.match(r"\[default\d+\]:", line))


def _last_words(launcher: str, stdout: dict[int, str], stderr: dict[int, str]) -> str:
    """The end of each rank's output, the one that failed first at the bottom, where pytest leaves the eye."""
    root_cause = re.search(r"Root Cause.*?rank\s*:\s*(\d+)", launcher, re.DOTALL)
    first = int(root_cause[1]) if root_cause else None
    if not stderr:
        return f"--- launcher\n{_tail(launcher, 40)}"
    parts = []
    for rank in sorted(stderr, key=lambda rank: rank == first):
        title = f"--- rank {rank}, which failed first" if rank == first else f"--- rank {rank}"
        lines = 60 if rank == first or first is None else 15
        parts.append(f"{title}: stdout\n{_tail(stdout[rank], 15)}\n{title}: stderr\n{_tail(stderr[rank], lines)}")
    return "\n".join(parts)


def _tail(text: str, lines: int) -> str:
    return "\n".join(text.splitlines()[-lines:])
