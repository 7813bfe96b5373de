"""The entry point of `unsloth-accel`."""

import argparse
import sys
from collections.abc import Sequence

from .. import __version__
from ..errors import UnslothAccelError
from . import bench, config, doctor, plan, report


# Each is a module with `add_parser(subparsers)`, which sets the default `run`: a function from the parsed arguments to
# the exit code. What is heavy to import is imported inside `run`, so that `--help` stays fast.
COMMANDS = (config, doctor, plan, bench, report)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(prog="unsloth-accel", description="Unsloth on many GPUs with accelerate launch.")
    parser.add_argument("--version", action="version", version=f"unsloth-accel {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv (`Sequence[str]`, *optional*): The arguments. Defaults to those of the process.

    Returns:
        `int`: The exit code: 0 for success, 2 for bad input, which is explained on stderr.
    """
    args = build_parser().parse_args(argv)
    try:
        code: int = args.run(args)
    except UnslothAccelError as error:
        print(f"unsloth-accel: error: {error}", file=sys.stderr)
        return 2
    return code
