"""A program that launches ranks and is then interrupted or killed: `python launch_caller.py FOLDER`."""

import sys

from launch_targets import bar_then_wait

from unsloth_accel import launch_ddp_training


launch_ddp_training(bar_then_wait, "cpu_gloo", args=(sys.argv[1],))
