import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from harness import launch
from unsloth_accel.errors import ConfigurationError
from unsloth_accel.ranks.run_once import run_once


WORKER = Path(__file__).parents[1] / "workers" / "rank_first.py"


def ranks_of(scenario, out, num_processes):
    return [json.loads((out / f"{scenario}-{rank}.json").read_text()) for rank in range(num_processes)]


def start_without_agent(scenario, out, num_processes):
    """The ranks as mpirun would start them: rank 0 hosts the store, and nobody ends the peers of a dead rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = []
    for rank in range(num_processes):
        world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_processes}
        env = os.environ | {key: str(value) for key, value in world.items()}
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONPATH": str(WORKER.parents[2])}
        command = [sys.executable, str(WORKER), scenario, str(out)]
        processes.append(subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True))
    errors = [process.communicate(timeout=90)[1] for process in processes]
    return [process.returncode for process in processes], errors


def test_one_process_is_a_plain_call(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    unpicklable = object()
    assert run_once(lambda: unpicklable, name="anything") is unpicklable


def test_wrong_scope_names_the_argument():
    with pytest.raises(ConfigurationError, match=r"`scope` is 'local'; allowed are 'world' and 'node'"):
        run_once(lambda: None, name="anything", scope="local")


def test_incomplete_launcher_environment_is_named(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ConfigurationError, match="WORLD_SIZE is 2 but RANK is not set"):
        run_once(lambda: None, name="anything")


@pytest.mark.gloo
def test_all_ranks_get_the_result_and_the_error_of_one(tmp_path):
    launch(WORKER, "agree", tmp_path, num_processes=4)
    ranks = ranks_of("agree", tmp_path, 4)
    assert [rank.get("worked") for rank in ranks] == [
        ["0-from-0", "1-from-0", "after-from-0", "node-from-0"], None, ["node-from-2"], None,
    ]  # fmt: skip
    for number, rank in enumerate(ranks):
        assert rank["before"] == ["0-from-0", "1-from-0"]
        assert rank["after"] == "after-from-0"
        assert rank["long"] == "slept"
        assert rank["node"] == f"node-from-{number // 2 * 2}"
        assert "again" not in rank
    assert ranks[0]["alone"] == "nested"
    assert ranks[0]["error"][:2] == ["ValueError", "no space left"]
    assert ranks[0]["unpicklable"][0] in ("PicklingError", "AttributeError")
    assert "timeout" not in ranks[0]
    for rank in ranks[1:]:
        kind, text, seconds = rank["error"]
        assert (kind, text) == ("PeerError", "Rank 0 failed while saving. Its error: ValueError: no space left")
        assert seconds < 5
        assert rank["timeout"][:2] == ["PeerError", "Rank 0 did not finish dawdling within `timeout` = 1 s."]
        assert rank["unpicklable"][0] == "PeerError"


@pytest.mark.gloo
def test_a_killed_worker_is_noticed_by_its_silence(tmp_path):
    codes, errors = start_without_agent("killed", tmp_path, 4)
    assert codes == [0, 0, -9, 3], errors
    kind, text, seconds = json.loads((tmp_path / "killed-3.json").read_text())["killed"]
    assert kind == "PeerError"
    assert text.startswith("Rank 2 has been silent for 3 s while tokenising")
    assert 3 <= seconds < 10
    assert "Waiting for rank 2 to finish tokenising, 1 s so far." in errors[3]


@pytest.mark.gloo
def test_a_killed_host_of_the_store_is_noticed_at_once(tmp_path):
    codes, errors = start_without_agent("host_killed", tmp_path, 2)
    assert codes == [-9, 3], errors
    kind, text, seconds = json.loads((tmp_path / "host_killed-1.json").read_text())["killed"]
    assert kind == "PeerError"
    assert text.startswith("Lost the store that the launcher or rank 0 hosts, while rank 0 was merging")
    assert seconds < 10


@pytest.mark.gloo
def test_the_host_of_the_store_leaves_last(tmp_path):
    codes, errors = start_without_agent("late", tmp_path, 3)
    assert codes == [0, 0, 0], errors
    assert [rank["late"] for rank in ranks_of("late", tmp_path, 3)] == ["done"] * 3
