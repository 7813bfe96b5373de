"""Starting ranks from Python: a notebook, a test, another program."""

from .configs import config_path
from .failure import LaunchError
from .launcher import launch_ddp_training


__all__ = ["LaunchError", "config_path", "launch_ddp_training"]
