"""The example for Ray trains what `accelerate launch` trains, also where a worker is killed on the way."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from harness import ON_CPU, ROOT, free_port, launch, rank_results
from trajectories import FLOAT32


EXAMPLE = ROOT / "examples" / "ray_train.py"
WORKER = ROOT / "tests" / "workers" / "ray_train.py"
STEPS = 30
KILLED_AFTER = 4

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray: the extra `ray` of the package"),
]


def options(model: Path, rows: Path, output: Path) -> list[str]:
    """Of the example: two ranks on the CPU."""
    given = {"model": model, "dataset": rows, "output": output, "steps": STEPS, "save-steps": 2, "batch-size": 2}
    given |= {"max-length": 64, "num-workers": 2, "max-failures": 1}
    return ["--cpu", *(f"--{name}={value}" for name, value in given.items())]


def kill_a_worker(mark: str) -> None:
    """One of those of the Ray that has this variable."""
    workers = [process for process in psutil.process_iter(["cmdline"]) if is_worker(process, mark)]
    assert len(workers) == 2
    workers[0].send_signal(signal.SIGKILL)


def is_worker(process: psutil.Process, mark: str) -> bool:
    if "RayTrainWorker" not in " ".join(process.info["cmdline"] or []):
        return False
    started_by: str | None = process.environ().get("STARTED_BY")
    return started_by == mark


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    ours = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    mark = str(tmp_path_factory.mktemp("ray"))
    return {**os.environ, **ON_CPU, **ours, "UNSLOTH_DISABLE_STATISTICS": "1", "STARTED_BY": mark}


@pytest.fixture(scope="module")
def cluster(environment: dict[str, str]) -> Iterator[str]:
    """The address of a Ray of our own. With ports that it is given it waits for none, as it does for 15 s only."""
    port, *others = (free_port() for _ in range(5))
    names = ["metrics-export", "dashboard-agent-listen", "dashboard-agent-grpc", "runtime-env-agent"]
    ports = [f"--{name}-port={other}" for name, other in zip(names, others, strict=True)]
    # Sockets lie in that folder, and their paths may have 107 characters.
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=2"]
        command += [f"--port={port}", *ports, f"--temp-dir={folder}", "--include-dashboard=false"]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as ray:
            assert ray.stdout is not None
            assert any("Ray runtime started" in line for line in ray.stdout), "it ends before that"
            yield f"127.0.0.1:{port}"
            ray.terminate()


@pytest.fixture(scope="module")
def trained(
    tiny_model: Path, cluster: str, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> SimpleNamespace:
    """On Ray, with a worker killed; and by `accelerate launch`, undisturbed."""
    folder = tmp_path_factory.mktemp("ray")
    rows, output = folder / "rows", folder / "outputs"
    rows.mkdir()
    texts = [{"text": " ".join(str(start + term) for term in range(3 + start % 9))} for start in range(64)]
    (rows / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    command = [sys.executable, str(EXAMPLE), *options(tiny_model, rows, output)]
    with (folder / "said").open("w") as said:
        driver = subprocess.Popen(
            command, cwd=folder, env={**environment, "RAY_ADDRESS": cluster}, stdout=said, stderr=subprocess.STDOUT
        )
    try:
        deadline = time.monotonic() + 240
        while not (output / f"checkpoint-{KILLED_AFTER}").exists():
            assert driver.poll() is None, (folder / "said").read_text()[-5000:]
            assert time.monotonic() < deadline, (folder / "said").read_text()[-5000:]
            time.sleep(0.01)
        kill_a_worker(environment["STARTED_BY"])
        driver.wait(240)
    finally:
        driver.kill()
    launch(WORKER, folder / "out", *options(tiny_model, rows, folder / "plain"))
    logged = [result["logged"] for result in rank_results(folder / "out")]
    said_by_all = (folder / "said").read_text()
    return SimpleNamespace(code=driver.returncode, said=said_by_all, output=output, undisturbed=logged[0])


def test_it_trains_what_accelerate_launch_trains(trained: SimpleNamespace) -> None:
    assert trained.code == 0, trained.said[-5000:]
    state = json.loads((trained.output / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
    logged = [entry for entry in state["log_history"] if "loss" in entry]
    for key in ("loss", "grad_norm"):
        ours, theirs = ([entry[key] for entry in one] for one in (logged, trained.undisturbed))
        assert len(ours) == STEPS
        assert ours == pytest.approx(theirs, rel=FLOAT32), key


def test_it_goes_on_from_the_newest_checkpoint(trained: SimpleNamespace) -> None:
    assert "resume: training starts from the beginning" in trained.said
    assert f"resume: training goes on from {trained.output}/checkpoint-" in trained.said


def test_it_saves_one_adapter_and_reports_to_the_driver(trained: SimpleNamespace) -> None:
    assert (trained.output / "adapter_model.safetensors").stat().st_size > 0
    manifest: dict[str, Any] = json.loads((trained.output / f"checkpoint-{STEPS}" / "manifest.json").read_text())
    assert manifest["manifest"]["world_size"] == 2
    assert f"'step': {STEPS}" in trained.said
    assert "Unsloth should be imported before" not in trained.said
