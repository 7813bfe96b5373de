"""Runs every tier of the tests, whatever the others did, and says at the end how each went: `make test`.

Usage: tiers.py [pytest arguments, passed to every tier]
"""

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree


RESULTS = Path(__file__).parents[1] / "build" / "tests"
# Apart, because pytest alone cannot say that a tier collected nothing: its exit code 5 fails that tier. On two cores
# three tests at a time, where some of them wait: for other ranks, or in vain.
TIERS = {
    "unit": ["-m", "unit", "-n", "3"],
    "gpu": ["-m", "gpu or multigpu"],
    "notebook": ["-m", "notebook", "-n", "2"],
    "cpu": ["-m", "cpu", "-n", "3", "--dist", "loadfile"],
    "gloo": ["-m", "gloo and not long", "-n", "3", "--dist", "loadfile"],
}


def run(tier: str, more: Sequence[str]) -> tuple[bool, str]:
    """Whether the tier passed, and its line of the summary."""
    results = RESULTS / f"{tier}.xml"
    results.unlink(missing_ok=True)
    began = time.monotonic()
    command = [sys.executable, "-m", "pytest", *TIERS[tier], f"--junit-xml={results}", *more]
    code = subprocess.run(command, check=False).returncode
    seconds = time.monotonic() - began
    return code == 0, f"{tier:8} {'passed' if code == 0 else 'FAILED'}  {counts(results)}, {seconds:.0f} s"


def counts(results: Path) -> str:
    if not results.exists():
        return "pytest ended without results"
    suite = ElementTree.parse(results).getroot()[0]
    total, failed, broken, skipped = (int(suite.attrib[key]) for key in ("tests", "failures", "errors", "skipped"))
    return f"{total - failed - broken - skipped} passed, {failed + broken} failed, {skipped} skipped"


def main(more: Sequence[str]) -> int:
    outcomes = [run(tier, more) for tier in TIERS]
    print("", *(line for _, line in outcomes), sep="\n")
    return 0 if all(passed for passed, _ in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
