"""Rank 1 fails or stalls while rank 0 is still busy: `misbehave.py raise | hang`. No torch, so that it starts fast."""

import os
import sys
import time


def raise_on_purpose() -> None:
    raise RuntimeError("rank 1 fails on purpose")


def hang_on_purpose() -> None:
    time.sleep(600)


if os.environ["RANK"] == "1" and sys.argv[1] == "raise":
    raise_on_purpose()
hang_on_purpose()
