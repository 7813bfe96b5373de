"""`unsloth-accel doctor`: the versions that are installed, and the fixes that they need."""

import argparse
import json
import sys
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from ..fixes import status
from ..imports import FLOORS


if TYPE_CHECKING:
    from argparse import _SubParsersAction


def add_parser(subparsers: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds `doctor`."""
    parser = subparsers.add_parser("doctor", help="list versions, and which compatibility fixes are needed here")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.set_defaults(run=run_doctor)


def run_doctor(args: argparse.Namespace) -> int:
    """Prints versions and fixes; the exit code is 1 if a package is missing or below its floor."""
    versions = {package: _installed(package) for package in FLOORS}
    below = [package for package in FLOORS if not _new_enough(package, versions[package])]
    # The probes import what may be missing.
    fixes = [] if None in versions.values() else [asdict(row) for row in status()]
    if args.json:
        python = sys.version.split()[0]
        print(json.dumps({"python": python, "versions": versions, "below": below, "fixes": fixes}, indent=2))
    else:
        _print_versions(versions, below)
        for fix in fixes:
            print(f"\n{fix['name']}: {fix['state']} ({fix['reason']})\n  {fix['symptom']}\n  {fix['upstream']}")
    return 1 if below else 0


def _print_versions(versions: dict[str, str | None], below: list[str]) -> None:
    for package, found in versions.items():
        verdict = f"needs >= {FLOORS[package]}" if package in below else "ok"
        print(f"{package:<14} {found or 'not installed':<16} {verdict}")


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _new_enough(package: str, found: str | None) -> bool:
    from packaging.version import Version

    return found is not None and Version(found).release >= Version(FLOORS[package]).release
