"""A program that launches ranks and is then interrupted or killed: `python launch_caller.py FOLDER`."""

import sys

from launch_targets import bar_then_wait

from unsloth_accel import launch_ddp_training
from unsloth_accel.launch import launcher as launching


launching._GRACE_SECONDS = 2.0  # rank 1 ignores the first signal, and the test does not wait ten seconds for that
launch_ddp_training(bar_then_wait, "cpu_gloo", args=(sys.argv[1],))
