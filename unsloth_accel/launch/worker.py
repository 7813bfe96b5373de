"""What each rank of `launch_ddp_training` runs: `accelerate launch --module unsloth_accel.launch.worker <folder>`.

The folder is how the caller and the ranks talk: `plan.json` and `call.pkl` go in; `result.pkl` (of rank 0),
`error_<rank>.json`, `stack_<rank>.txt` and `output_<rank>.txt` come out. A lock that the caller holds on `alive` tells
the ranks that it still lives.
"""

import atexit
import base64
import faulthandler
import fcntl
import json
import linecache
import os
import pickle
import runpy
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import PeerError
from ..ranks.environment import rank
from .failure import ASKS_FOR_STACK


_exit_code = [1]


def main(folder: Path) -> None:
    """Runs the target on this rank, and leaves its result or its error in `folder`, where the launcher looks."""
    own = rank()
    atexit.register(_end)  # first in, last out: after the exit functions of every library
    _route_output(folder, own)
    _die_with_caller(folder)
    _keep_stacks(folder, own)
    plan = json.loads((folder / "plan.json").read_text())
    try:
        result = _result(plan, folder)
        if own == 0:
            _write_result(folder, result)
        _leave_process_group()
    except KeyboardInterrupt:
        return
    except BaseException as error:  # recorded for the caller, who raises it; this rank still fails
        _record_error(folder, own, error)
        return
    _exit_code.append(0)


def _end() -> None:
    """Ends the process without the teardown of native libraries.

    gloo's threads abort a process that exits while a process group, or a model that holds one, is alive ("terminate
    called without an active exception", about one exit in ten), and the launcher then kills the ranks still at work.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(_exit_code[-1])


def _route_output(folder: Path, own: int) -> None:
    """Rank 0 talks to the caller, on one stream so that lines keep their order; the others write into a file."""
    if own != 0:
        output = os.open(folder / f"output_{own}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(output, sys.stdout.fileno())
    os.dup2(sys.stdout.fileno(), sys.stderr.fileno())


def _die_with_caller(folder: Path) -> None:
    """Ends this rank's process group when the caller is gone.

    torch's launcher starts each rank in a session of its own, so neither a signal to the caller's group nor the death
    of the launcher reaches it: a restarted notebook kernel would leave ranks that hold the GPUs.
    """

    def watch() -> None:
        with open(folder / "alive") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)  # waits until the caller lets go, or the kernel does so for a dead one
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=watch, name="unsloth_accel-caller-watch", daemon=True).start()


def _keep_stacks(folder: Path, own: int) -> None:
    """Writes where this rank was when it crashed or was told to stop, also while it is stuck in a collective.

    Training takes SIGTERM over, so who waited too long asks with another signal; whom is in the name of a file.
    """
    stacks = open(folder / f"stack_{own}.txt", "w")  # noqa: SIM115 # faulthandler needs it until the process ends
    faulthandler.enable(stacks)
    faulthandler.register(signal.SIGTERM, stacks, chain=True)
    faulthandler.register(ASKS_FOR_STACK, stacks)
    (folder / f"pid_{os.getpid()}").touch()


def _result(plan: dict[str, Any], folder: Path) -> object:
    """What the target returns; None if it leaves by `sys.exit()`, as a training that the stop file ends does."""
    try:
        return _work(plan, folder)
    except SystemExit as end:
        if end.code not in (None, 0):
            raise
        return None


def _work(plan: dict[str, Any], folder: Path) -> object:
    sys.path[:] = plan["sys_path"]
    for filename, lines in plan["sources"].items():  # a notebook cell is no file: tracebacks find its lines here
        linecache.cache[filename] = (sum(map(len, lines)), None, lines, filename)
    if plan["enable"] is not None:
        from ..drop_in.enable import enable_multi_gpu

        enable_multi_gpu(**plan["enable"])
    if plan["script"] is not None:
        _run_script(plan["script"], plan["script_args"])
        return None
    if plan["load_unsloth"]:  # before unpickling, which may import trl or a class that Unsloth generates
        from ..imports import load_unsloth

        load_unsloth()
    function, args, kwargs = pickle.loads((folder / "call.pkl").read_bytes())
    return function(*args, **kwargs)


def _run_script(script: str, args: list[str]) -> None:
    sys.argv = [script, *args]
    sys.path.insert(0, str(Path(script).parent))
    runpy.run_path(script, run_name="__main__")


def _write_result(folder: Path, result: object) -> None:
    import cloudpickle

    try:
        data = cloudpickle.dumps(result)
    except Exception as error:
        raise TypeError(
            f"rank 0 returned a {type(result).__name__}, which cannot be pickled ({error}). Return plain values, or "
            "save the object to a file and return its path."
        ) from error
    _write(folder / "result.pkl", data)


def _record_error(folder: Path, own: int, error: BaseException) -> None:
    frames = error.__traceback__
    while frames is not None and frames.tb_next is not None and _is_scaffold(frames):
        frames = frames.tb_next
    text = "".join(traceback.format_exception(type(error), error.with_traceback(frames), frames))
    record = {
        "rank": own,
        "time": time.time(),
        "from_peer": isinstance(error, PeerError),
        "traceback": text,
        "exception": _pickled(error),
    }
    _write(folder / f"error_{own}.json", json.dumps(record).encode())


def _is_scaffold(frames: TracebackType) -> bool:
    """Whether the outermost frame is this file's or runpy's, which tells a user nothing."""
    return frames.tb_frame.f_code.co_filename in (__file__, runpy.__file__, "<frozen runpy>")


def _pickled(error: BaseException) -> str | None:
    """The exception itself, for the caller's `__cause__`; `None` where it cannot travel."""
    try:
        data = pickle.dumps(error.with_traceback(None))
        pickle.loads(data)  # an exception whose `__init__` takes other arguments pickles, but does not come back
    except Exception:  # any exception class may refuse in its own way; its text travels in any case
        return None
    return base64.b64encode(data).decode()


def _write(path: Path, data: bytes) -> None:
    """In one step: the launcher may kill this rank at any moment, and half a record is worse than none."""
    part = path.with_suffix(".part")
    part.write_bytes(data)
    part.replace(path)


def _leave_process_group() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
