"""Runs a script, or a module after `-m`, as one rank of a test, and leaves without the teardown of native libraries.

gloo's threads abort a process that ends while a model in DDP is alive ("terminate called without an active
exception"): seen in one of about twenty exits of plain torch 2.13 on a loaded machine, also after
`destroy_process_group()`. A rank that did all its work would fail its test. One that raises fails as it always does.
"""

import atexit
import os
import runpy
import sys
from pathlib import Path


_exit_codes: list[int] = []


def _leave() -> None:
    """Runs after the exit functions of every library, because it was registered before them."""
    if _exit_codes == [0]:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def main() -> None:
    atexit.register(_leave)
    del sys.argv[0]
    if sys.argv[0] == "-m":
        del sys.argv[0]
        sys.path[0] = os.getcwd()
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(sys.argv[0]).parent)
        runpy.run_path(sys.argv[0], run_name="__main__")
    _exit_codes.append(0)


if __name__ == "__main__":
    main()
