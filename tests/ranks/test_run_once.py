"""One rank works, the others get its result, its error, or the news that it is gone."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from harness import free_port, launch, rank_results
from unsloth_accel.errors import ConfigurationError
from unsloth_accel.ranks.run_once import run_once


WORKER = Path(__file__).parents[1] / "workers" / "run_once.py"


# What each rank saw, by scenario.
Scenarios: TypeAlias = dict[str, list[dict[str, Any]]]
# What all ranks live through. In the last one rank 0 is done, and ends, before the others.
SHARED = ["alone_and_together", "disagree", "alone_in_some_rounds", "agree", "errors", "ended"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Scenarios:
    """What each of four ranks saw."""
    out = tmp_path_factory.mktemp("shared")
    launch(WORKER, out, *SHARED, num_processes=4)
    return {scenario: rank_results(out / scenario, 4) for scenario in SHARED}


def start_without_agent(scenario: str, out: Path, num_processes: int) -> tuple[list[int], list[str]]:
    """The ranks as mpirun would start them: rank 0 hosts the store, and nobody ends the peers of a dead rank."""
    port = str(free_port())
    processes = []
    for rank in range(num_processes):
        world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_processes}
        env = os.environ | {key: str(value) for key, value in world.items()}
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONPATH": str(WORKER.parents[2])}
        command = [sys.executable, str(WORKER), str(out), scenario]
        processes.append(subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True))
    try:
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], errors


def test_one_process_is_a_plain_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    nothing_for_json = object()
    assert run_once(lambda: nothing_for_json, key="any", description="anything") is nothing_for_json


def test_wrong_scope_names_the_argument() -> None:
    with pytest.raises(ConfigurationError, match=r"`scope` is 'local'; allowed are 'world' and 'node'"):
        run_once(lambda: None, key="any", description="anything", scope="local")  # type: ignore[arg-type]


def test_incomplete_launcher_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ConfigurationError, match="WORLD_SIZE is 2 but RANK is not set"):
        run_once(lambda: None, key="any", description="anything")


@pytest.mark.gloo
def test_all_ranks_get_the_result_and_the_error_of_one(shared: Scenarios) -> None:
    ranks = shared["agree"]
    assert [rank.get("worked") for rank in ranks] == [
        ["0-from-0", "1-from-0", "after-from-0", "node-from-0"], None, ["node-from-2"], None,
    ]  # fmt: skip
    for number, rank in enumerate(ranks):
        assert rank["before"] == ["0-from-0", "1-from-0"]
        assert rank["after"] == "after-from-0"
        assert rank.get("without 3") == (None if number == 3 else {"a": [1, None, 0.5]})
        assert rank["node"] == f"node-from-{number // 2 * 2}"
        assert "again" not in rank
    assert ranks[0]["alone"] == "nested"
    assert ranks[0]["error"] == ["ValueError", "no space left"]
    assert ranks[0]["not_json"][0] == "TypeError"
    assert "JSON, which cannot hold set (" in ranks[0]["not_json"][1]
    assert "`key` is 'not_json'" in ranks[0]["not_json"][1]
    assert "timeout" not in ranks[0]
    for rank in ranks[1:]:
        kind, text = rank["error"]
        assert kind == "PeerError"
        assert re.fullmatch(
            r"Rank 0 failed while saving \(run_once.py:.*\)\. Its error: ValueError: no space left", text
        )
        kind, text = rank["timeout"]
        assert kind == "PeerError"
        assert re.match(r"Rank 0 did not (begin|finish) dawdling .* within `timeout` = 1 s\.", text)
        assert rank["not_json"][0] == "PeerError"


@pytest.mark.gloo
def test_a_call_of_rank_0_alone_is_not_taken_for_a_later_one_of_all(shared: Scenarios) -> None:
    for rank in shared["alone_and_together"]:
        assert (rank["function"], rank["line"]) == ("1, by all", "4, by all")


@pytest.mark.gloo
def test_ranks_that_do_different_things_in_one_call_are_told_so_at_once(shared: Scenarios) -> None:
    ranks = shared["disagree"]
    assert ranks[0] == {}, "the working rank's work ends only when the others have been told"
    for number, rank in enumerate(ranks[1:], start=1):
        kind, text = rank["stamped"]
        assert kind == "ConfigurationError"
        assert re.search(rf"Rank 0: saving to out-\d+-0\. Rank {number}: saving to out-\d+-{number}\.", text)


@pytest.mark.gloo
def test_a_line_that_rank_0_reaches_alone_in_some_rounds_is_named(shared: Scenarios) -> None:
    ranks = shared["alone_in_some_rounds"]
    assert "round" not in ranks[0]
    for number, rank in enumerate(ranks[1:], start=1):
        kind, text = rank["round"]
        assert kind == "ConfigurationError"
        assert f"Rank 0: saving step 0. Rank {number}: saving step 2." in text


@pytest.mark.gloo
def test_a_rank_that_ends_without_making_the_call_is_not_waited_for(shared: Scenarios) -> None:
    for rank in shared["ended"][1:]:
        kind, text = rank["merge"]
        assert kind == "PeerError"
        lines = re.findall(r"merging \((run_once.py:\d+ < run_once.py:\d+).*?\)", text)
        assert text.startswith("Rank 0 ended without merging (")
        assert "Its last call of this kind: merging (" in text
        assert len(set(lines)) == 2, "each rank's own line"


@pytest.mark.gloo
def test_a_killed_worker_is_noticed_by_its_silence(tmp_path: Path) -> None:
    codes, errors = start_without_agent("killed", tmp_path, 4)
    assert codes == [0, 0, -9, 3], errors
    result = json.loads((tmp_path / "killed-3.json").read_text())
    assert result["long"] == "slept", "work may last longer than a rank may be silent"
    kind, text = result["killed"]
    assert kind == "PeerError"
    assert re.match(r"Rank 2 has been silent for \d+ s while tokenising", text)
    assert re.search(r"Waiting for rank 2 to finish tokenising \(.*\), \d+ s so far\.", errors[3])
    assert result["its error"].startswith("(rank 2 left no error within 1 s")


@pytest.mark.gloo
def test_a_killed_host_of_the_store_is_noticed(tmp_path: Path) -> None:
    """By the lost connection: the silence of its heartbeat would be told in other words, and later."""
    codes, errors = start_without_agent("host_killed", tmp_path, 2)
    assert codes == [-9, 3], errors
    result = json.loads((tmp_path / "host_killed-1.json").read_text())
    kind, text = result["killed"]
    assert kind == "PeerError"
    assert text.startswith("Lost the store that the launcher or rank 0 hosts, while rank 0 was merging")
    assert result["its error"].startswith("(rank 0 left no error")
    assert "Traceback" not in errors[1]


@pytest.mark.gloo
def test_the_host_of_the_store_leaves_last(tmp_path: Path) -> None:
    codes, errors = start_without_agent("late", tmp_path, 3)
    assert codes == [0, 0, 0], errors
    assert [rank["late"] for rank in rank_results(tmp_path / "late", 3)] == ["done"] * 3


@pytest.mark.gloo
def test_an_error_that_a_rank_published_reaches_the_others(shared: Scenarios) -> None:
    assert [rank["published"] for rank in shared["errors"]] == ["ValueError: a row too long"] * 4
