"""Two machines with two ranks each: two launchers, on one host or in two network namespaces."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace
from typing import Any

import pytest

from harness import ROOT, free_port, launch, rank_results
from trajectories import FLOAT32


WORKERS = ROOT / "tests" / "workers"
WORKER = WORKERS / "two_machines.py"
# Its `stall_timeout`, and what the launcher needs to notice that its ranks have left.
ENDS_WITHIN_SECONDS = 20 + 40
CUT_SECONDS = 5

pytestmark = pytest.mark.long


@dataclass(frozen=True)
class Machine:
    """Where its launcher runs, and its network interface."""

    interface: str = "lo"
    within: Sequence[str] = ()


@dataclass(frozen=True)
class Machines:
    """Both of them, and the address of the first."""

    address: str
    both: tuple[Machine, Machine]
    pool: ThreadPoolExecutor

    def start(
        self, worker: Path, *arguments: object, expect_failure: bool = False
    ) -> "list[Future[CompletedProcess[str]]]":
        port = str(free_port())
        common = ["--num_machines", "2", "--main_process_ip", self.address, "--main_process_port", port]
        return [
            self.pool.submit(
                launch,
                worker,
                *arguments,
                num_processes=4,
                options=[*common, "--machine_rank", str(number)],
                within=machine.within,
                env={"GLOO_SOCKET_IFNAME": machine.interface},
                timeout=280,
                expect_failure=expect_failure,
            )
            for number, machine in enumerate(self.both)
        ]

    def run(self, worker: Path, *arguments: object) -> list[CompletedProcess[str]]:
        """Runs the worker on both, to its end."""
        return [running.result() for running in self.start(worker, *arguments)]


@dataclass(frozen=True)
class Run:
    """A run of the worker that is about to be disturbed."""

    out: Path
    machines: Machines
    running: "list[Future[CompletedProcess[str]]]"

    def step(self) -> int:
        """The step that all ranks have done."""
        files = [Path(f"{self.out}-{rank}.step") for rank in range(4)]
        return min(int(file.read_text()) if file.exists() else 0 for file in files)

    def wait_for_step(self, step: int, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self.step() < step:
            for running in self.running:
                assert not running.done(), running.result().stderr
            assert time.monotonic() < deadline, f"step {step} was not done within {seconds} s, but {self.step()}"
            time.sleep(0.05)

    def power_off(self, number: int) -> None:
        """Kills the launcher of a machine and its ranks, at once and without a word."""
        ranks = [json.loads(Path(f"{self.out}-{rank}.pid").read_text()) for rank in (2 * number, 2 * number + 1)]
        for process in {*(launcher for _, launcher in ranks), *(rank for rank, _ in ranks)}:
            os.kill(process, signal.SIGKILL)

    def what_the_other_says(self, number: int) -> str:
        """How it ends, in time, after this machine was powered off."""
        began = time.monotonic()
        said = self.running[1 - number].result().stderr
        took = time.monotonic() - began
        assert took < ENDS_WITHIN_SECONDS, f"{took} s\n{said}"
        return said

    def go_on(self, whole: Sequence[dict[str, Any]]) -> None:
        """Starts both again; every rank resumes, and trains what the run did that nobody disturbed."""
        self.machines.run(WORKER, self.out, json.dumps({"seconds": 0}))
        for result, undisturbed in zip(rank_results(self.out, 4), whole, strict=True):
            assert 0 < result["before"] < 40
            assert result["losses"] == pytest.approx(undisturbed["losses"], rel=FLOAT32)
            assert result["weights"] == pytest.approx(undisturbed["weights"], rel=FLOAT32, abs=FLOAT32)


@contextmanager
def two_machines(address: str, first: Machine, second: Machine) -> Iterator[Machines]:
    with ThreadPoolExecutor(2) as pool:
        yield Machines(address, (first, second), pool)


def begin(machines: Machines, out: Path) -> Run:
    run = Run(out, machines, machines.start(WORKER, out, json.dumps({"seconds": 0.3}), expect_failure=True))
    run.wait_for_step(5, 200)
    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The run on one machine that nobody disturbs."""
    out = tmp_path_factory.mktemp("whole") / "out"
    launch(WORKER, out, json.dumps({"seconds": 0}), num_processes=4)
    return rank_results(out, 4)


@pytest.fixture(scope="module")
def loopback() -> Iterator[Machines]:
    with two_machines("127.0.0.1", Machine(), Machine()) as machines:
        yield machines


@pytest.fixture
def linked() -> Iterator[Machines]:
    """Two network namespaces, as two machines at one cable; this user is root in them, and nowhere else."""
    user = ["unshare", "--map-root-user"]
    with namespace([*user, "--net"]) as first, namespace([*enter(first, "--user"), "unshare", "--net"]) as second:
        inside = [enter(process, "--user", "--net") for process in (first, second)]
        ip(inside[0], "link add cable type veth peer name cable netns", str(second.pid))
        for number, within in enumerate(inside, 1):
            ip(within, f"addr add 10.77.0.{number}/24 dev cable")
            ip(within, "link set lo up")
            ip(within, "link set cable up")
        with two_machines("10.77.0.1", *(Machine("cable", within) for within in inside)) as machines:
            yield machines


@contextmanager
def namespace(unshare: Sequence[str]) -> "Iterator[subprocess.Popen[str]]":
    """A process that holds a network namespace of its own; skips the test where this user may not have one."""
    command = [*unshare, "sh", "-c", "echo ready; exec sleep infinity"]
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stderr is not None
        if holder.stdout.readline() != "ready\n":
            pytest.skip(f"needs network namespaces: {holder.stderr.read().strip()}")
        yield holder
        holder.kill()


def enter(process: "subprocess.Popen[str]", *namespaces: str) -> list[str]:
    return ["nsenter", "--target", str(process.pid), "--preserve-credentials", *namespaces]


def ip(within: Sequence[str], command: str, *more: str) -> None:
    subprocess.run([*within, "ip", *command.split(), *more], check=True, capture_output=True, timeout=30)


def lose_power(run: Run, number: int) -> str:
    """Of a machine at the cable: not even its kernel says a word, nor closes a connection. What the other says."""
    cable = run.machines.both[1].within
    ip(cable, "link set cable down")
    run.power_off(number)
    said = run.what_the_other_says(number)
    ip(cable, "link set cable up")
    return said


def test_where_one_machine_is_killed_the_other_ends_and_both_go_on(
    loopback: Machines, whole: list[dict[str, Any]], tmp_path: Path
) -> None:
    """It is the one that hosts the store."""
    run = begin(loopback, tmp_path / "out")
    run.power_off(0)
    run.what_the_other_says(0)
    run.go_on(whole)


def test_a_link_that_is_cut_for_a_moment_and_a_machine_without_power(
    linked: Machines, whole: list[dict[str, Any]], tmp_path: Path
) -> None:
    run = begin(linked, tmp_path / "out")
    cable = linked.both[1].within
    ip(cable, "link set cable down")
    time.sleep(CUT_SECONDS)
    during = run.step()
    ip(cable, "link set cable up")
    run.wait_for_step(during + 3, 60)
    assert "Rank 2 does not come: it has not been heard of" in lose_power(run, 1)
    run.go_on(whole)


def test_the_machine_that_hosts_the_store_without_power(
    linked: Machines, whole: list[dict[str, Any]], tmp_path: Path
) -> None:
    """What the other asks the store is never answered."""
    run = begin(linked, tmp_path / "out")
    assert "It has lost the store in which the ranks meet" in lose_power(run, 0)
    run.go_on(whole)


@pytest.fixture(scope="module")
def apart(loopback: Machines, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """What came of each case where each machine has a folder of its own, and what rank 0 said."""
    folder = tmp_path_factory.mktemp("apart")
    for machine in "01":
        (folder / "folders" / machine).mkdir(parents=True)
    done = loopback.run(WORKERS / "output_folders.py", folder / "out", folder / "folders")
    return SimpleNamespace(ranks=rank_results(folder / "out", 4), said=done[0].stderr)


@pytest.mark.parametrize(
    ("case", "why"), [("resumes", "it cannot resume from a checkpoint there"), ("best", "`load_best_model_at_end`")]
)
def test_where_checkpoints_must_be_read_one_folder_is_needed(apart: SimpleNamespace, case: str, why: str) -> None:
    for rank in apart.ranks:
        kind, text = rank[case]
        assert kind == "ConfigurationError"
        assert "rank 2, 3 does not see what rank 0 writes" in text
        assert why in text
        assert "`save_on_each_node=True`" in text


def test_without_reading_them_it_trains_and_says_once_what_follows(apart: SimpleNamespace) -> None:
    for case in ("alone", "weights"):
        assert [rank[case]["folders"] for rank in apart.ranks] == [["checkpoint-2"]] * 2 + [[]] * 2
    assert apart.said.count("checkpoints lie on the machine of rank 0 only, and cannot be resumed as they are") == 2


def test_saved_on_each_machine_training_goes_on_from_the_newest_that_all_have(apart: SimpleNamespace) -> None:
    for number, rank in enumerate(apart.ranks):
        assert rank["each"]["folders"] == ["checkpoint-2", "checkpoint-4"]
        own = {f"rng_state_{number}.pth", f"rng_state_{number ^ 1}.pth"}
        assert own == {file for file in rank["files"] if file.startswith("rng_state")}
        assert rank["damaged"]["before"] == 2
        assert rank["damaged"]["weights"] == rank["each"]["weights"]
    assert "rank 2 finds none newer than checkpoint-2 on its machine" in apart.said


def test_a_stop_file_on_one_machine_stops_all(apart: SimpleNamespace) -> None:
    first, second = ["checkpoint-1", "metrics.jsonl"], ["checkpoint-1"]
    assert [rank["stopped"] for rank in apart.ranks] == [[0, first]] * 2 + [[0, second]] * 2


def test_saved_on_each_machine_into_one_folder_is_an_error(apart: SimpleNamespace) -> None:
    for rank in apart.ranks:
        kind, text = rank["shared"]
        assert kind == "ConfigurationError"
        assert "`save_on_each_node` is True, but rank 2, 3 on another machine sees the `output_dir` of rank 0" in text
