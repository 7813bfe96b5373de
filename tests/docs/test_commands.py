"""Every command of the pages is one that can be given: its program, files and options are there.

Those that a CPU can run are run by tests/docs/test_planning.py, test_report.py, test_examples.py and tests/cli.
"""

import re
import shlex
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path

import pytest

from harness import ROOT
from pages import code_blocks
from unsloth_accel import config_path
from unsloth_accel.cli.main import build_parser


PROGRAMS = {"accelerate", "make", "pip", "pytest", "python", "unsloth-accel"}
# What stands for a reader's own.
THEIRS = {"train.py", "script.py"}

pytestmark = pytest.mark.usefixtures("model_libraries")


def commands(page: str) -> Iterator[list[str]]:
    """The words of each command in the blocks of a page, without what is set before it or redirected after it."""
    for block in code_blocks(page, "", "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"; (?:do )?|\bdo ", re.sub(r"\s#.*", "", line)):
                command = re.sub(r"^(\w+=\S* )+", "", part.strip())
                if command.partition(" ")[0] in PROGRAMS:
                    yield shlex.split(command.partition(" > ")[0])


def check_script(file: str, arguments: list[str]) -> None:
    """A script of ours is there, and its source names each option."""
    if file in THEIRS:
        return
    source = (ROOT / file).read_text()
    if "gradient_sync" in source:  # whose options it has, too
        source += (ROOT / "benchmarks" / "gradient_sync.py").read_text()
    for option in (word for word in arguments if word.startswith("--")):
        assert f'"{option}"' in source, f"{file} has no {option}"


def check(words: list[str]) -> None:
    program, *arguments = words
    for name in re.findall(r"config path (\w+)", " ".join(arguments)):
        assert Path(config_path(name)).is_file()
    if program == "python":
        check_script(arguments[0], arguments[1:])
    elif program == "accelerate":
        from accelerate.commands.launch import launch_command_parser

        assert arguments[0] == "launch"
        given = launch_command_parser().parse_args(arguments[1:])
        if given.module:
            assert given.training_script == "unsloth_accel"
            check_script(given.training_script_args[0], given.training_script_args[1:])
        else:
            check_script(given.training_script, given.training_script_args)
    elif program == "unsloth-accel":
        build_parser().parse_args(arguments)
    elif program == "pytest":
        assert all((ROOT / word).exists() for word in arguments if word.startswith("tests/"))
    elif program == "make":
        assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), arguments
    else:
        setup = ConfigParser()
        setup.read(ROOT / "setup.cfg")
        for extra in re.findall(r"\[(\w+)\]", " ".join(arguments)):
            assert setup.has_option("options.extras_require", extra), extra


def test_each_command_can_be_given(page: Path) -> None:
    for words in commands(page.read_text()):
        try:
            check(words)
        except SystemExit as refused:
            raise AssertionError(f"refused: {' '.join(words)}") from refused


def test_commands_are_found_behind_what_is_set_and_in_loops() -> None:
    page = "```bash\nA=1 python a.py --x 2 > out # why\nfor n in 1 2; do make demo; done; export B=1\n```\n"
    assert list(commands(page)) == [["python", "a.py", "--x", "2"], ["make", "demo"]]


@pytest.mark.parametrize(
    "words",
    [
        ["python", "benchmarks/compare.py", "--never"],
        ["python", "benchmarks/never.py"],
        ["make", "never"],
        ["accelerate", "launch", "--never", "train.py"],
        ["unsloth-accel", "plan", "--never"],
    ],
    ids=" ".join,
)
def test_a_command_that_is_not_there_is_noticed(words: list[str]) -> None:
    with pytest.raises((AssertionError, FileNotFoundError, SystemExit)):
        check(words)
