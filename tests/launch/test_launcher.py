import base64
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest
import torch

from harness import ROOT
from unsloth_accel import ConfigurationError, MultiGPUConfig, launch_ddp_training
from unsloth_accel.launch.failure import LaunchError, first_failure


WORKERS = Path(__file__).parents[1] / "workers"


@pytest.fixture
def targets(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module of functions, importable here and, because `sys.path` travels, on the ranks."""
    monkeypatch.syspath_prepend(WORKERS)
    return importlib.import_module("launch_targets")


def _gone(pids: list[int]) -> bool:
    end = time.monotonic() + 60  # a deadline: they leave as soon as they are given a CPU
    while time.monotonic() < end and any(map(psutil.pid_exists, pids)):
        time.sleep(0.05)
    return not any(map(psutil.pid_exists, pids))


def _caller(script: str, *args: object, **options: Any) -> subprocess.Popen[bytes]:
    paths = [str(ROOT), str(WORKERS), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.Popen(
        [sys.executable, str(WORKERS / script), *map(str, args)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


@pytest.mark.gloo
def test_a_function_of_a_module_returns_rank_zeros_value(
    targets: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    result = launch_ddp_training(targets.sum_of_ranks, "cpu_gloo", args=(1,), kwargs={"scale": 2})

    assert result == {"sum": 6.0, "world": 2}
    out = capsys.readouterr().out
    assert out.count("accelerate launch --config_file") == 1
    assert "rank 0 of 2" in out
    assert "rank 1 of 2" not in out


@pytest.mark.gloo
def test_a_function_that_leaves_without_an_error_returns_nothing(targets: ModuleType) -> None:
    """As a training does that the stop file ended, in a notebook, too."""
    assert launch_ddp_training(targets.leaves, "cpu_gloo") is None


@pytest.mark.gloo
def test_a_script_gets_its_arguments_and_its_error_comes_back(
    targets: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    script = WORKERS / "launch_script.py"

    assert launch_ddp_training(script, "cpu_gloo", args=("--steps", 3)) is None
    out = capsys.readouterr().out
    assert "ARGV ['--steps', '3']" in out
    assert f"PYTHONPATH {ROOT}\n" in out, "the ranks must find this package, wherever it is"
    with pytest.raises(LaunchError, match="the script gave up") as caught:
        launch_ddp_training(str(script), "cpu_gloo", args=("fail",))
    assert caught.value.rank == 1


@pytest.mark.gloo
def test_the_failing_ranks_traceback_is_raised(targets: ModuleType) -> None:
    with pytest.raises(LaunchError) as caught:
        launch_ddp_training(targets.rank_one_raises, "cpu_gloo")

    assert caught.value.rank == 1
    assert isinstance(caught.value.__cause__, KeyError)
    message = str(caught.value)
    assert 'raise KeyError("the row that rank 1 cannot read")' in message
    assert "launch/worker.py" not in message


@pytest.mark.gloo
@pytest.mark.parametrize(("how", "said"), [("exit", "exit code 7"), ("kill", "killed by SIGKILL")])
def test_a_rank_that_dies_without_a_word_is_named(targets: ModuleType, how: str, said: str) -> None:
    with pytest.raises(LaunchError, match=said) as caught:
        launch_ddp_training(targets.rank_one_dies, "cpu_gloo", args=(how,))

    assert caught.value.rank == 1
    assert "the last words of rank 1" in str(caught.value)


@pytest.mark.gloo
def test_a_timeout_stops_the_ranks_and_says_where_they_were(targets: ModuleType, tmp_path: Path) -> None:
    for timeout in (10, 40, 160):  # a busy machine needs longer until its ranks wait
        with pytest.raises(LaunchError, match=f"`timeout={timeout}` seconds") as caught:
            launch_ddp_training(targets.bar_then_wait, "cpu_gloo", args=(str(tmp_path),), timeout=timeout)
        if len(list(tmp_path.glob("pid_*"))) == 2:
            break

    assert str(caught.value).count("in bar_then_wait") == 2
    assert _gone([int(path.read_text()) for path in tmp_path.glob("pid_*")])


@pytest.mark.gloo
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_rank_outlives_a_caller_that_is_interrupted_or_killed(tmp_path: Path, how: signal.Signals) -> None:
    caller = _caller("launch_caller.py", tmp_path, start_new_session=True)
    try:
        ranks = _pids_of_ranks(tmp_path, caller)
        family = [*(child.pid for child in psutil.Process(caller.pid).children(recursive=True)), *ranks]
        caller.send_signal(how)
        out, error = caller.communicate(timeout=100)
    finally:
        caller.kill()

    assert _gone(family)
    bar = out.decode()
    assert re.search(r"\rbar of rank 0: .*\rbar of rank 0: ", bar)
    assert "bar of rank 1" not in bar
    if how == signal.SIGINT:
        assert error.decode().rstrip().endswith("KeyboardInterrupt")
        assert (tmp_path / "left_0").exists(), "rank 0 could not run its `finally`"


def _pids_of_ranks(folder: Path, caller: subprocess.Popen[bytes]) -> list[int]:
    """Waits until both ranks have said that they run."""
    end = time.monotonic() + 120
    while not all((folder / f"pid_{rank}").exists() for rank in (0, 1)):
        assert caller.poll() is None, caller.communicate()
        assert time.monotonic() < end, "the ranks did not start"
        time.sleep(0.05)
    return [int((folder / f"pid_{rank}").read_text()) for rank in (0, 1)]


@pytest.mark.gloo
def test_functions_of_notebook_cells_travel_by_value(tmp_path: Path) -> None:
    caller = _caller("launch_notebook.py", cwd=tmp_path)
    out, error = caller.communicate(timeout=500)

    assert caller.returncode == 0, error.decode()
    assert "ANSWER 40 2 True" in out.decode()
    assert "LAMBDA 10" in out.decode()
    assert "raise ValueError('in the second cell')" in error.decode()


def test_what_cannot_be_sent_is_named(tmp_path: Path) -> None:
    log_file = open(tmp_path / "log", "w")  # noqa: SIM115 # an open file is what cannot be sent
    weights = {"layer": torch.empty(2, device="meta")}

    def write() -> None:
        log_file.write("step")

    def train() -> None:
        write()

    def measure() -> torch.Tensor:
        return weights["layer"].sum()

    with pytest.raises(ConfigurationError, match=r"variable `log_file` \(TextIOWrapper\), used in `.*write`"):
        launch_ddp_training(train, "cpu_gloo")
    with pytest.raises(ConfigurationError, match=r"variable `weights` \(dict\).*holds a tensor on meta"):
        launch_ddp_training(measure, "cpu_gloo")
    with pytest.raises(ConfigurationError, match=r"`args\[1\]` \(TextIOWrapper\)"):
        launch_ddp_training(lambda *_: None, "cpu_gloo", args=(1, log_file))
    with pytest.raises(ConfigurationError, match=r"`kwargs\['log'\]`"):
        launch_ddp_training(lambda **_: None, "cpu_gloo", kwargs={"log": log_file})
    log_file.close()


def test_bad_arguments_are_refused_before_a_process_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    nodes = tmp_path / "nodes.yaml"
    nodes.write_text("num_machines: 2\nuse_cpu: true\n")
    broken, words = tmp_path / "broken.yaml", tmp_path / "words.yaml"
    broken.write_text("num_machines: [")
    words.write_text("words")
    cases: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
        (("no_such_script.py", "cpu_gloo"), {}, "neither a function nor an existing script"),
        ((__file__, "cpu_gloo"), {"kwargs": {"steps": 3}}, "`kwargs` \\(steps\\) are for functions"),
        ((len, "cpu_glo"), {}, "cpu_gloo"),
        ((len, nodes), {}, "spans 2 machines"),
        ((len, broken), {}, "is no YAML"),
        ((len, words), {}, "must hold settings of Accelerate, got 'words'"),
        ((len, "cpu_gloo"), {"num_processes": 0}, "`num_processes` must be a positive integer, got 0"),
        ((len, "ddp"), {"num_processes": torch.cuda.device_count() + 1}, "are visible"),
        ((len,), {"num_processes": torch.cuda.device_count() + 1}, "`config='ddp.*are visible"),
        ((len, MultiGPUConfig(num_gpus=torch.cuda.device_count() + 1)), {}, "are visible"),
    ]
    for args, options, message in cases:
        with pytest.raises(ConfigurationError, match=message):
            launch_ddp_training(*args, **options)
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(ConfigurationError, match="on a rank that a launcher started"):
        launch_ddp_training(len, "cpu_gloo")


def test_an_exception_that_only_the_rank_can_load_leaves_its_traceback(tmp_path: Path) -> None:
    exception = base64.b64encode(b"cno_such_module\nAnError\n.").decode()
    record = {"rank": 1, "time": 1.0, "from_peer": False, "traceback": "AnError: its text", "exception": exception}
    (tmp_path / "error_1.json").write_text(json.dumps(record))

    error = first_failure(tmp_path)

    assert "AnError: its text" in str(error)
    assert error.__cause__ is None


def test_the_launchers_own_failure_shows_its_output(tmp_path: Path) -> None:
    (tmp_path / "launcher.txt").write_text("No module named accelerate")

    error = first_failure(tmp_path)

    assert error.rank is None
    assert "No module named accelerate" in str(error)


def test_an_error_that_tells_of_another_rank_is_not_the_first(tmp_path: Path) -> None:
    for rank, time_, from_peer in ((0, 1.0, True), (1, 2.0, False)):
        record = f'{{"rank": {rank}, "time": {time_}, "from_peer": {str(from_peer).lower()}, '
        record += f'"traceback": "text {rank}", "exception": null}}'
        (tmp_path / f"error_{rank}.json").write_text(record)

    assert first_failure(tmp_path).rank == 1
