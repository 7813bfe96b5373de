"""Answers what can only be asked by importing: `python -m unsloth_accel.doctor.survey_process FILE`.

A process of its own, because an installation may be so broken that importing it ends the process or hangs, and because
what is imported prints. Each question is written down before it is asked: the file tells at which one it ended.
"""

import importlib
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from ..imports import FLOORS


def main(path: Path) -> None:
    """Asks all questions, each after it was written down.

    Args:
        path (`Path`): The file that questions and answers are written to, a line of JSON each.
    """
    with path.open("w", buffering=1) as file:
        # Unsloth wants to be imported before trl, transformers and peft; torch before it, so that the one is told from
        # the other if the process ends there.
        for package in sorted(FLOORS, key=lambda package: package != "torch"):
            _ask(file, f"import {package}", partial(_import, package))
        _ask(file, "launch config", default_launch_config)
        _ask(file, "gpus", gpus)
        _ask(file, "peer access", peer_access)
        _ask(file, "attention", attention)
        _ask(file, "fixes", fixes)


def _ask(file: TextIO, question: str, ask: Callable[[], Any]) -> None:
    print(json.dumps({"question": question}), file=file)
    try:
        said = {"answer": ask()}
    except (Exception, SystemExit) as error:  # a broken installation may raise anything, and that is what is asked
        said = {"error": _describe(error)}
    print(json.dumps({"question": question} | said), file=file)


def _describe(error: BaseException) -> str:
    """The error in one line; of a chain, which libraries build around a failed import, also what began it."""
    began = error
    while (cause := began.__cause__ or began.__context__) is not None:
        began = cause
    said = [f"{type(one).__name__}: {' '.join(str(one).split())}" for one in dict.fromkeys((error, began))]
    return "; began with ".join(said)


def _import(package: str) -> None:
    importlib.import_module(package)


def default_launch_config() -> str:
    """The path of the config that `accelerate launch` reads if it is given none."""
    from accelerate.commands.config.config_args import default_config_file

    return str(default_config_file)


def gpus() -> list[dict[str, Any]]:
    """The visible GPUs, in the order of their numbers."""
    import torch

    found = []
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        capability = [card.major, card.minor]
        found.append({"name": card.name, "capability": capability, "memory": total, "free": free})
    return found


def peer_access() -> list[list[int]]:
    """The pairs of GPUs that cannot read each other's memory."""
    import torch

    cards = range(torch.cuda.device_count())
    return [[a, b] for a in cards for b in cards if a < b and not torch.cuda.can_device_access_peer(a, b)]


def attention() -> dict[str, Any]:
    """Whether documents of a packed row get an attention launch each."""
    from ..fixes import packed_attention

    verdict = packed_attention.probe(None)
    return {"one_by_one": verdict.needed, "reason": verdict.reason}


def fixes() -> list[dict[str, Any]]:
    """Every compatibility fix, and whether this installation needs it."""
    from ..fixes import FIXES

    found = []
    for fix in FIXES:
        verdict = fix.probe(None)
        found.append({"name": fix.name, "needed": verdict.needed, "reason": verdict.reason})
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]))
