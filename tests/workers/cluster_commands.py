"""Stands in for a command of a cluster: `cluster_commands.py NAME ARGUMENTS`; `srun` starts two tasks.

Each call adds a line to $CALLS. `accelerate` ends as $LAUNCHERS says: with `0` or `1` at once, as a launcher whose
training is done or has failed, or with 1 at a `signal`, as one that has forwarded it.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path


CALLS = Path(os.environ["CALLS"])


def note(command, arguments):
    with CALLS.open("a") as file:
        file.write(
            json.dumps([command, arguments, {k: v for k, v in os.environ.items() if k.startswith("PET_")}]) + "\n"
        )


def srun(*command):
    tasks = [subprocess.Popen(command, env={**os.environ, "SLURM_NODEID": str(node)}) for node in range(2)]
    CALLS.with_name("tasks").write_text(json.dumps([task.pid for task in tasks]))
    return max(task.wait() for task in tasks)


def scancel(*_):
    for task in json.loads(CALLS.with_name("tasks").read_text()):
        os.kill(task, signal.SIGUSR1)
    return 0


def scontrol(*arguments):
    if arguments[0] == "show":
        print("node-a\nnode-b")
    return 0


def accelerate(*_):
    if os.environ["LAUNCHERS"] != "signal":
        return int(os.environ["LAUNCHERS"])
    signal.signal(signal.SIGUSR1, lambda *_: sys.exit(1))
    CALLS.with_name(f"waits-{os.environ['SLURM_NODEID']}").touch()
    time.sleep(60)
    return 0


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    note(name, arguments)
    sys.exit(globals()[name](*arguments))
