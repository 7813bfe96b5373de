"""`unsloth-accel doctor`: what this installation needs mended, and in which versions."""

import argparse
import json
import sys
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from ..imports import FLOORS


if TYPE_CHECKING:
    from argparse import _SubParsersAction


def add_parser(subparsers: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds `doctor`."""
    parser = subparsers.add_parser("doctor", help="list versions and compatibility fixes: needed, not needed, applied")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.set_defaults(run=run_doctor)


def run_doctor(args: argparse.Namespace) -> int:
    """Prints versions and fixes; the exit code is 1 if a package is missing or below its floor."""
    from ..fixes import status

    versions = {package: _installed(package) for package in FLOORS}
    faults = [package for package in FLOORS if not _new_enough(package, versions[package])]
    fixes = [asdict(row) for row in status()]
    if args.json:
        print(
            json.dumps(
                {"python": sys.version.split()[0], "versions": versions, "below": faults, "fixes": fixes}, indent=2
            )
        )
    else:
        for package, found in versions.items():
            verdict = f"needs >= {FLOORS[package]}" if package in faults else "ok"
            print(f"{package:<14} {found or 'not installed':<16} {verdict}")
        for fix in fixes:
            print(f"\n{fix['name']}: {fix['state']} ({fix['reason']})\n  {fix['symptom']}\n  {fix['upstream']}")
    return 1 if faults else 0


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _new_enough(package: str, found: str | None) -> bool:
    from packaging.version import Version

    return found is not None and Version(found).release >= Version(FLOORS[package]).release
