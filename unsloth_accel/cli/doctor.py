"""`unsloth-accel doctor`: what is wrong with this machine and installation, and the commands that mend it."""

import argparse
import json
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING

from ..doctor.finding import Finding


if TYPE_CHECKING:
    from argparse import _SubParsersAction


def add_parser(subparsers: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds `doctor`."""
    parser = subparsers.add_parser("doctor", help="check versions, GPUs, links, configs, disk and fixes")
    parser.add_argument("--launch", action="store_true", help="also start ranks with accelerate launch, and time them")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.set_defaults(run=run_doctor)


def run_doctor(args: argparse.Namespace) -> int:
    """Prints what was found, as it is found; the exit code is 1 if anything failed."""
    from ..doctor.examination import examine

    findings = []
    for finding in examine(launch=args.launch):
        findings.append(finding)
        if not args.json:
            print(_as_text(finding), flush=True)
    failed = any(finding.verdict == "FAIL" for finding in findings)
    if args.json:
        print(json.dumps({"healthy": not failed, "findings": list(map(asdict, findings))}, indent=2))
    else:
        counts = Counter(finding.verdict for finding in findings)
        print(", ".join(f"{counts[verdict]} {verdict}" for verdict in ("PASS", "WARN", "FAIL", "SKIP")))
    return 1 if failed else 0


def _as_text(finding: Finding) -> str:
    mend = f"\n{'':28}-> {finding.mend}" if finding.mend else ""
    return f"{finding.verdict}  {finding.check:<22} {finding.message}{mend}"
