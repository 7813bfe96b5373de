"""`unsloth-accel config`: lists, finds and copies the shipped Accelerate configs."""

import argparse
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigurationError


if TYPE_CHECKING:
    from argparse import _SubParsersAction


def add_parser(subparsers: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds `config` and its actions."""
    parser = subparsers.add_parser("config", help="list, find or copy the shipped Accelerate configs")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)

    listing = actions.add_parser("list", help="show each config's name and what it is for")
    listing.set_defaults(run=list_configs)

    path = actions.add_parser("path", help="print a config's path, for `accelerate launch --config_file`")
    path.add_argument("name", metavar="NAME")
    path.set_defaults(run=print_path)

    copy = actions.add_parser("copy", help="copy a config to edit it")
    copy.add_argument("name", metavar="NAME")
    copy.add_argument("destination", metavar="DEST", type=Path, help="a new file, or an existing folder")
    copy.set_defaults(run=copy_config)


def list_configs(args: argparse.Namespace) -> int:
    """Prints each name beside the first comment line of its file."""
    from ..launch.configs import config_names, config_path

    for name in config_names():
        summary = config_path(name).read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        print(f"{name:<14} {summary}")
    return 0


def print_path(args: argparse.Namespace) -> int:
    """Prints the path alone, so that a shell can use it."""
    from ..launch.configs import config_path

    print(config_path(args.name))
    return 0


def copy_config(args: argparse.Namespace) -> int:
    """Copies the file, and never over one that exists."""
    from ..launch.configs import config_path

    source = config_path(args.name)
    destination: Path = args.destination
    if destination.is_dir():
        destination = destination / source.name
    if destination.exists():
        raise ConfigurationError(f"`DEST` must be a new file; {destination} exists. Remove it or choose another name.")
    if not destination.parent.is_dir():
        raise ConfigurationError(f"`DEST` must lie in an existing folder; there is no {destination.parent}.")
    shutil.copyfile(source, destination)
    print(destination)
    return 0
