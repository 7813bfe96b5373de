"""`unsloth-accel report`: what a run measured, as one page."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from argparse import _SubParsersAction


def add_parser(subparsers: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds `report`."""
    parser = subparsers.add_parser("report", help="make a page of what a run measured, or of two runs side by side")
    parser.add_argument("run_folder", metavar="RUN", type=Path, help="the trainer's output_dir")
    parser.add_argument("--compare", metavar="OTHER", type=Path, help="the output_dir of another run")
    parser.add_argument("--output", metavar="FILE", type=Path, help="the HTML file; default: RUN/report.html")
    parser.set_defaults(run=make_report)


def make_report(args: argparse.Namespace) -> int:
    """Prints the table on stdout, to be pasted or kept, and on stderr where the page is."""
    from ..report import write_report

    report = write_report(args.run_folder, args.compare, args.output)
    print(report.markdown, end="")
    print(f"{report.page}; the charts as PNG in {report.pictures[0].parent}", file=sys.stderr)
    return 0
