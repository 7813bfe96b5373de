"""Runs cells as a notebook kernel does: functions of `__main__` whose source is in no file."""

import linecache
import sys

from unsloth_accel import launch_ddp_training


# ruff: noqa: F821 # what the cells define is here at run time


def run_cell(name, source):
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    exec(compile(source, name, "exec"), globals())


run_cell(
    "<cell 1>",
    """
import os
factor = 10
def helper(value):
    return value * factor
class Answer:
    def __init__(self, value):
        self.value = value
def train(value):
    return Answer(helper(value)), os.environ["WORLD_SIZE"]
""",
)
run_cell("<cell 2>", "def broken():\n    raise ValueError('in the second cell')\n")

answer, world_size = launch_ddp_training(train, "cpu_gloo", args=(4,))
print("ANSWER", answer.value, world_size, type(answer) is Answer)
print("LAMBDA", launch_ddp_training(lambda: int(os.environ["RANK"]) + factor, "cpu_gloo", num_processes=1))
try:
    launch_ddp_training(broken, "cpu_gloo")
except RuntimeError as error:
    print("BROKEN", error, file=sys.stderr)
