"""The scripts and manifests of examples/cluster call `accelerate launch` as Accelerate understands it.

Their commands run as they stand, in bash; the cluster's own are stood in for. None of it has seen a cluster.
"""

import json
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness import ROOT
from unsloth_accel.launch.configs import config_path


CLUSTER = ROOT / "examples" / "cluster"
COMMANDS = ROOT / "tests" / "workers" / "cluster_commands.py"
SLURM = {"SLURM_JOB_ID": "41234", "SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8"}
# Of the console script in setup.cfg.
ENTRY_POINT = "import sys; from unsloth_accel.cli.main import main; sys.exit(main())"


class Shell:
    """A PATH whose commands of a cluster are stood in for, and what they were called with."""

    def __init__(self, folder: Path) -> None:
        self.calls = folder / "calls"
        for name in ("srun", "scancel", "scontrol", "accelerate"):
            self._write(folder / name, f'exec {sys.executable} {COMMANDS} {name} "$@"')
        self._write(folder / "unsloth-accel", f'exec {sys.executable} -c "{ENTRY_POINT}" "$@"')
        paths = {"PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
        self.environment = {**os.environ, **paths, "CALLS": str(self.calls)}

    def _write(self, file: Path, text: str) -> None:
        file.write_text(f"#!/bin/bash\n{text}\n")
        file.chmod(0o755)

    def start(self, *command: str, **environment: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(command, env={**self.environment, **environment}, text=True)

    def run(self, *command: str, **environment: str) -> int:
        return self.start(*command, **environment).wait(60)

    def called(self, name: str) -> list[list[Any]]:
        calls = [json.loads(line) for line in self.calls.read_text().splitlines()]
        return [call[1:] for call in calls if call[0] == name]


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def as_accelerate_reads(arguments: list[str]) -> Namespace:
    from accelerate.commands.launch import launch_command_parser

    assert arguments[0] == "launch"
    read: Namespace = launch_command_parser().parse_args(arguments[1:])
    assert Path(read.config_file) == config_path("ddp_multinode")
    return read


def machines(shell: Shell) -> list[tuple[Any, ...]]:
    """What each launcher was told: rank, machines, processes, address, script and its arguments."""
    told = [as_accelerate_reads(arguments) for arguments, _ in shell.called("accelerate")]
    place = attrgetter("machine_rank", "num_machines", "num_processes", "main_process_ip", "training_script")
    return sorted((*place(launcher), *launcher.training_script_args) for launcher in told)


def documents(name: str) -> dict[str, Any]:
    """The documents of a manifest, by kind."""
    return {document["kind"]: document for document in yaml.safe_load_all((CLUSTER / name).read_text())}


def run_container(shell: Shell, container: dict[str, Any], **environment: str) -> int:
    """Runs what a container is told to, with the variables that it is given."""
    given = {variable["name"]: variable["value"] for variable in container.get("env", [])}
    return shell.run(*container["command"], *container["args"], **given, **environment)


def test_slurm_is_bash() -> None:
    subprocess.run(["bash", "-n", str(CLUSTER / "slurm.sh")], check=True, timeout=30)


def test_slurm_starts_one_launcher_on_each_node(shell: Shell) -> None:
    script = ["train.py", "--name", "two words"]
    assert shell.run("bash", str(CLUSTER / "slurm.sh"), *script, LAUNCHERS="0", **SLURM) == 0
    common = (2, 16, "node-a", *script)
    assert machines(shell) == [(0, *common), (1, *common)]
    assert [call for call, _ in shell.called("scontrol")] == [["show", "hostnames", "node-[a-b]"]]


def test_slurm_hands_the_signal_on_and_puts_the_job_back_into_the_queue(shell: Shell) -> None:
    from torch.distributed.run import get_args_parser

    job = shell.start("bash", str(CLUSTER / "slurm.sh"), "train.py", LAUNCHERS="signal", **SLURM)
    deadline = time.monotonic() + 60
    while len(list(shell.calls.parent.glob("waits-*"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(60) == 1
    assert [call for call, _ in shell.called("scancel")] == [["--signal=USR1", "41234"]]
    assert [call for call, _ in shell.called("scontrol")][1:] == [["requeue", "41234"]]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in shell.called("accelerate")[0][1].items():
            patch.setenv(name, value)
        assert "SIGUSR1" in get_args_parser().parse_args(["train.py"]).signals_to_handle


def test_slurm_does_not_repeat_what_has_failed(shell: Shell) -> None:
    assert shell.run("bash", str(CLUSTER / "slurm.sh"), "train.py", LAUNCHERS="1", **SLURM) == 1
    assert not any("requeue" in call for call, _ in shell.called("scontrol"))


def test_kubernetes_starts_one_launcher_in_each_pod(shell: Shell) -> None:
    manifest = documents("kubernetes.yaml")
    service, job = manifest["Service"], manifest["Job"]
    pod = job["spec"]["template"]["spec"]
    for index in range(job["spec"]["completions"]):
        assert run_container(shell, pod["containers"][0], JOB_COMPLETION_INDEX=str(index), LAUNCHERS="0") == 0
    first_pod = f"{job['metadata']['name']}-0.{pod['subdomain']}"
    assert machines(shell) == [(rank, 2, 16, first_pod, "train.py") for rank in (0, 1)]
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}


def test_kubeflow_starts_one_launcher_in_each_pod(shell: Shell) -> None:
    manifest = documents("kubeflow.yaml")
    runtime, job = manifest["TrainingRuntime"], manifest["TrainJob"]
    trainer = job["spec"]["trainer"]
    # As pkg/runtime/framework/plugins/torch/torch.go of Kubeflow Trainer 2.3 sets them.
    pet = {"PET_NNODES": "2", "PET_NPROC_PER_NODE": str(trainer["numProcPerNode"])}
    pet |= {"PET_MASTER_ADDR": "unsloth-node-0-0.unsloth", "PET_MASTER_PORT": "29500"}
    for node in range(trainer["numNodes"]):
        assert run_container(shell, trainer, PET_NODE_RANK=str(node), LAUNCHERS="0", **pet) == 0
    assert machines(shell) == [(rank, 2, 16, pet["PET_MASTER_ADDR"], "train.py") for rank in (0, 1)]
    assert job["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"]
    assert trainer["numProcPerNode"] == trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"]


@pytest.mark.parametrize("name", ["kubernetes.yaml", "kubeflow.yaml"])
def test_ranks_have_time_to_save_before_their_pod_is_killed(name: str) -> None:
    manifest = documents(name)
    if name == "kubernetes.yaml":
        pod = manifest["Job"]["spec"]["template"]["spec"]
    else:
        (node,) = manifest["TrainingRuntime"]["spec"]["template"]["spec"]["replicatedJobs"]
        pod = node["template"]["spec"]["template"]["spec"]
    given = {variable["name"]: variable["value"] for variable in pod["containers"][0]["env"]}
    assert int(given["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) < pod["terminationGracePeriodSeconds"]
    assert given["UNSLOTH_ACCEL_RESUME"] == "auto"
