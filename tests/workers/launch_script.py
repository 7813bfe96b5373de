"""A script that `launch_ddp_training` runs: shows that it is one, and leaves through `sys.exit`."""

import os
import sys

from launch_targets import sum_of_ranks


assert __name__ == "__main__"
print("ARGV", sys.argv[1:])
print("PYTHONPATH", os.environ["PYTHONPATH"].partition(os.pathsep)[0])
if "fail" in sys.argv and os.environ["RANK"] == "1":
    sys.exit("the script gave up")
sum_of_ranks(1)
sys.exit(0)
