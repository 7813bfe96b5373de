"""What the process that imports everything had to say."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .finding import Finding, Verdict


# Importing Unsloth takes 10 to 60 s on the machines that were seen, the longest from a network drive.
TIMEOUT_SECONDS = 600.0


class NotAnswered(Exception):
    """A question has no answer.

    Args:
        reason (`str`): Why.
        verdict (`"FAIL"` or `"SKIP"`): SKIP where it is no news, because something could not even be imported.
    """

    def __init__(self, reason: str, verdict: Verdict) -> None:
        super().__init__(reason)
        self.verdict: Verdict = verdict


@dataclass(frozen=True)
class Survey:
    """The answers of a process that imported Unsloth and looked around.

    Args:
        answers (`dict[str, Any]`): By question, what was found.
        errors (`dict[str, str]`): By question, what was raised instead.
        end (`str`, *optional*, defaults to `""`): How the process ended, if not by itself.
    """

    answers: dict[str, Any] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    end: str = ""

    def answer(self, question: str) -> Any:
        """The answer.

        Raises:
            NotAnswered: If there is none, with the reason.
        """
        if question in self.answers:
            return self.answers[question]
        if question not in self.errors:
            raise NotAnswered(f"not asked: {self.end}", "SKIP")
        broken = any(other.startswith("import ") for other in self.errors)
        raise NotAnswered(self.errors[question], "SKIP" if broken else "FAIL")


def take_survey(timeout: float = TIMEOUT_SECONDS) -> Survey:
    """Imports everything in a process of its own, and asks.

    Args:
        timeout (`float`, *optional*, defaults to 600): Seconds until the process is ended.

    Returns:
        `Survey`: What was answered until it ended.
    """
    with tempfile.TemporaryDirectory(prefix="unsloth_accel_doctor_") as folder:
        answers, log = Path(folder, "answers"), Path(folder, "log")
        command = [sys.executable, "-m", f"{__package__}.survey_process", str(answers)]
        with log.open("wb") as output:
            try:
                code: int | None = subprocess.run(
                    command,
                    env=_environment(folder),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    timeout=timeout,
                    check=False,
                ).returncode
            except subprocess.TimeoutExpired:
                code = None
        return _read(answers, _how_it_ended(code, timeout, log))


def _environment(folder: str) -> dict[str, str]:
    """With this package on the path; what Unsloth generates does not stay in the working directory."""
    ours = str(Path(__file__).parents[2])
    return {
        **os.environ,
        # Behind what is there: the doctor looks at the environment as it is.
        "PYTHONPATH": os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), ours])),
        "UNSLOTH_COMPILE_LOCATION": str(Path(folder, "compiled")),
    }


def _how_it_ended(code: int | None, timeout: float, log: Path) -> str:
    if code == 0:
        return ""
    if code is None:
        return f"the process that imports it was ended after {timeout:.0f} s"
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    lines = log.read_text(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f"the process that imports it ended with {how}" + (f": {last}" if last else "")


def _read(path: Path, end: str) -> Survey:
    answers, errors, last = {}, {}, ""
    for line in path.read_text().split("\n")[:-1] if path.exists() else ():  # what is behind the last is half a line
        said = json.loads(line)
        last = said["question"]
        if "answer" in said:
            answers[last] = said["answer"]
        elif "error" in said:
            errors[last] = said["error"]
    if end and last and last not in answers and last not in errors:
        errors[last] = end
    return Survey(answers, errors, end)


def unanswered(check: str, reason: NotAnswered) -> Finding:
    """The finding of a check that a question without an answer makes impossible."""
    if reason.verdict == "FAIL":
        return Finding(check, "FAIL", str(reason), "nvidia-smi; python -m torch.utils.collect_env")
    return Finding(check, "SKIP", str(reason), "mend what FAILs above, then run `unsloth-accel doctor` again")
