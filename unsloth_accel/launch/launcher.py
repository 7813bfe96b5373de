"""Start a script or a function on several GPUs from Python: a notebook, a test, another program.

`accelerate.notebook_launcher` forks, and refuses once CUDA is initialised, which `import unsloth` does. Here the ranks
are fresh processes of a plain `accelerate launch`, whatever the calling process did before.
"""

import codecs
import fcntl
import inspect
import json
import linecache
import os
import pickle
import select
import shlex
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from ..drop_in.config import MultiGPUConfig
from ..errors import ConfigurationError
from ..ranks.environment import was_launched
from ..ranks.gpu_config import gpu_config
from .configs import config_path
from .failure import LaunchError, ask_for_stacks, first_failure
from .pickling import dumps_call


_GRACE_SECONDS = 10.0
_POLL_SECONDS = 0.1


def launch_ddp_training(
    target: str | Path | Callable[..., Any],
    config: str | Path | MultiGPUConfig | None = None,
    args: Sequence[object] = (),
    kwargs: Mapping[str, object] | None = None,
    *,
    num_processes: int | None = None,
    timeout: float | None = None,
) -> Any:
    """Runs a script or a function on several ranks through `accelerate launch` and waits for it.

    Rank 0's output appears in `sys.stdout` as it comes, with its progress bar. Ctrl-C, or a notebook's stop button,
    ends all ranks; so does the end of the calling process.

    Args:
        target (`str`, `Path` or `Callable`):
            A script, or a function. A function of a notebook or of `__main__` is sent by value, with the variables it
            uses; one of an importable module by name.
        config (`str`, `Path` or [`MultiGPUConfig`], *optional*):
            The short name of a shipped config, the path of an Accelerate YAML, or a [`MultiGPUConfig`]: then each rank
            also calls `enable_multi_gpu` with it before the target, so that `trl.SFTTrainer` is the accelerated one.
            `None`: `"ddp"`, or `"ddp_fp16"` where a GPU computes no bf16.
        args (`Sequence`, *optional*):
            The function's positional arguments, or the script's command line.
        kwargs (`Mapping[str, object]`, *optional*):
            The function's keyword arguments.
        num_processes (`int`, *optional*):
            How many ranks. `None`: what the config says, else one for each visible GPU.
        timeout (`float`, *optional*):
            Seconds after which all ranks are stopped and an error shows where each one was. `None`: no limit.

    Returns:
        What the function returned on rank 0; `None` for a script, and for a function that left by `sys.exit()`.

    Raises:
        ConfigurationError: For arguments that cannot work, before any process is started.
        LaunchError: If a rank failed, with the traceback of the first one that did, or if `timeout` passed.

    Example:

    ```python
    >>> from unsloth_accel import launch_ddp_training

    >>> losses = launch_ddp_training(train, num_processes=2)  # doctest: +SKIP
    ```
    """
    _refuse_inside_a_launch()
    launch = _resolve_config(config, num_processes)
    with tempfile.TemporaryDirectory(prefix="unsloth_accel_launch_", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        _write_plan(folder, target, args, dict(kwargs or {}), config)
        command = [*launch, "--module", "unsloth_accel.launch.worker", str(folder)]
        _run(command, _environment(), folder, timeout)
        return _result(folder)


def _refuse_inside_a_launch() -> None:
    if was_launched():
        raise ConfigurationError(
            "`launch_ddp_training` was called on a rank that a launcher started (`LOCAL_RANK` is set). Call it from "
            "plain `python` or a notebook, and in a module only under `if __name__ == '__main__':`."
        )


def _resolve_config(config: str | Path | MultiGPUConfig | None, num_processes: int | None) -> list[str]:
    """The command up to the script: `accelerate launch` with its config, world size and a free port."""
    if isinstance(config, MultiGPUConfig):
        num_processes = num_processes if num_processes is not None else config.num_gpus
        config = config.launch_config
    path = config_path(gpu_config() if config is None else str(config))
    ranks = _num_processes(path, num_processes)
    port = "0"  # Accelerate looks for a free one itself, just before it starts the ranks
    options = ["--config_file", str(path), "--num_processes", str(ranks), "--main_process_port", port]
    return ["accelerate", "launch", *options]


def _num_processes(path: Path, asked: int | None) -> int:
    settings = _read(path)
    if int(settings.get("num_machines", 1)) > 1:
        raise ConfigurationError(
            f"`config={str(path)!r}` spans {settings['num_machines']} machines, and `launch_ddp_training` starts "
            "one. Run `accelerate launch` on each machine instead."
        )
    if asked is not None and (isinstance(asked, bool) or not isinstance(asked, int) or asked < 1):
        raise ConfigurationError(f"`num_processes` must be a positive integer, got {asked!r}.")
    if settings.get("use_cpu", False):
        return asked or int(settings.get("num_processes", 2))
    configured = settings.get("num_processes")  # an integer, or torchrun's word "gpu"
    return _fit_gpus(path, asked, configured if isinstance(configured, int) else None)


def _read(path: Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise ConfigurationError(f"`config={str(path)!r}` is no YAML: {error}") from error
    if not isinstance(settings, dict):
        raise ConfigurationError(f"`config={str(path)!r}` must hold settings of Accelerate, got {settings!r}.")
    return settings


def _fit_gpus(path: Path, asked: int | None, configured: int | None) -> int:
    import torch

    gpus = torch.cuda.device_count()  # asks the driver's library: no CUDA context is made here
    wanted = asked or configured or gpus
    if gpus == 0 or wanted > gpus:
        raise ConfigurationError(
            f"`config={path.stem!r}` with {wanted or 'any number of'} processes needs as many GPUs, and {gpus} are "
            "visible. " + ("Lower `num_processes`." if gpus else "Without a GPU, use `config='cpu_gloo'`.")
        )
    return wanted


def _write_plan(
    folder: Path,
    target: str | Path | Callable[..., Any],
    args: Sequence[object],
    kwargs: dict[str, object],
    config: str | Path | MultiGPUConfig | None,
) -> None:
    script = None if callable(target) else _script(target, kwargs)
    if callable(target):
        (folder / "call.pkl").write_bytes(dumps_call(target, args, kwargs))
    plan = {
        "sys_path": [os.path.abspath(entry) for entry in sys.path],
        "script": script,
        "script_args": [str(argument) for argument in args] if script else [],
        "sources": _sources(target),
        "load_unsloth": "unsloth" in sys.modules,
        "enable": config.to_dict() if isinstance(config, MultiGPUConfig) else None,
    }
    (folder / "plan.json").write_text(json.dumps(plan))


def _script(target: str | Path, kwargs: dict[str, object]) -> str:
    path = Path(target)
    if not path.is_file():
        raise ConfigurationError(f"`target={str(target)!r}` is neither a function nor an existing script.")
    if kwargs:
        raise ConfigurationError(f"`kwargs` ({', '.join(kwargs)}) are for functions; a script's options go in `args`.")
    return str(path.resolve())


def _sources(target: str | Path | Callable[..., Any]) -> dict[str, list[str]]:
    """The text of a notebook cell, which is in no file, so that a rank's traceback can show its lines."""
    if not inspect.isfunction(target) or os.path.exists(target.__code__.co_filename):
        return {}
    filename = target.__code__.co_filename
    return {filename: linecache.getlines(filename)}


def _environment() -> dict[str, str]:
    """The caller's, with output that is not held back, and with this package importable."""
    environment = dict(os.environ, PYTHONUNBUFFERED="1")
    parent = str(Path(__file__).parents[2])
    if parent not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (parent, os.environ.get("PYTHONPATH"))))
    return environment


def _run(command: list[str], environment: dict[str, str], folder: Path, timeout: float | None) -> None:
    _show(shlex.join(command) + "\n")
    # `accelerate` need not be on the PATH of a notebook kernel; this is the module behind it.
    start = [sys.executable, "-m", "accelerate.commands.launch", *command[2:]]
    with _held(folder / "alive"), open(folder / "launcher.txt", "wb") as log:
        process = subprocess.Popen(
            start,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,  # a terminal's Ctrl-C reaches the caller alone, which then stops the ranks
        )
        try:
            in_time = _stream(process, timeout)
            if not in_time:
                where = ask_for_stacks(folder)
                _stop(process, signal.SIGTERM)
        except BaseException:
            _stop(process, signal.SIGINT)
            raise
    if not in_time:
        raise LaunchError(f"`timeout={timeout}` seconds passed. Where each rank was:\n{where}")
    if process.returncode != 0:
        raise first_failure(folder)


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """Holds the lock by which the ranks know that the caller lives; letting go ends those that are left."""
    with open(path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _stream(process: "subprocess.Popen[bytes]", timeout: float | None) -> bool:
    """Copies rank 0's output until the launcher has ended; `False` if `timeout` passed before.

    Bytes, not lines: a progress bar redraws itself with carriage returns. And not until the end of the pipe, which a
    process that a rank left behind could hold open for ever.
    """
    assert process.stdout is not None
    pipe = process.stdout.fileno()
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    end = None if timeout is None else time.monotonic() + timeout
    while True:
        ended = process.poll() is not None  # asked before reading: what was written until then is still read
        wait = 0 if ended else _POLL_SECONDS
        if select.select([pipe], [], [], wait)[0]:
            data = os.read(pipe, 1 << 20)  # as much as a pipe can hold
            _show(decode(data))
            if not data:  # rank 0 closed its output and still runs
                time.sleep(wait)
        if ended:
            return True
        if end is not None and time.monotonic() > end:
            return False


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _stop(process: "subprocess.Popen[bytes]", how: signal.Signals) -> None:
    """Asks the launcher, which passes the signal on to every rank, then kills what is left after the grace period."""
    try:
        process.send_signal(how)
        process.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        pass  # the ranks that did not listen end when `_held` lets go
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _result(folder: Path) -> Any:
    result = folder / "result.pkl"
    if not result.exists():
        raise LaunchError("rank 0 ended without an error before its function returned (`os._exit(0)`?).", rank=0)
    return pickle.loads(result.read_bytes())
