"""What one check found."""

from dataclasses import dataclass
from typing import Literal


# FAIL: training will not work, or not as asked for. WARN: it works, worse than it could. SKIP: was not looked at.
Verdict = Literal["PASS", "WARN", "FAIL", "SKIP"]


@dataclass(frozen=True)
class Finding:
    """A line of `unsloth-accel doctor`.

    Args:
        check (`str`): What was looked at.
        verdict (`"PASS"`, `"WARN"`, `"FAIL"` or `"SKIP"`): How it is.
        message (`str`): What was found; of a skipped check, why it was skipped.
        mend (`str`, *optional*, defaults to `""`): The command, or the step, that mends it.
    """

    check: str
    verdict: Verdict
    message: str
    mend: str = ""
