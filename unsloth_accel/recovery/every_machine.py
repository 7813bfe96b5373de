"""The newest checkpoint that is complete on every machine, where each has checkpoints of its own."""

from functools import partial
from itertools import count

from ..ranks.agreement import gather_values
from ..ranks.logging import log_once
from ..ranks.run_once import run_once
from .newest import newest_step


# Checksums of a large checkpoint take longer on one machine than on another.
TIMEOUT_SECONDS = 1800.0

# Made in the same order on all ranks.
_searches = count()


def newest_on_every_machine(output_dir: str, with_optimizer: bool) -> tuple[int | None, list[str]]:
    """Lets the machines look, each in its own folder, until all name the same step. Called on all ranks.

    A machine that was killed while it saved may lack a checkpoint that the others have completed.

    Args:
        output_dir (`str`): Where the checkpoints are, on each machine.
        with_optimizer (`bool`): Whether it must have more than weights.

    Returns:
        `tuple[int | None, list[str]]`: The step of the checkpoint, None if there is none that all machines have; and
        the names of the finished ones that any machine has skipped for it.
    """
    limit, search = None, next(_searches)
    for attempt in count():
        found = run_once(
            partial(newest_step, output_dir, with_optimizer, limit),
            key="resume",
            description=f"looking for the newest complete checkpoint in {output_dir}",
            scope="node",
        )
        of_ranks = gather_values(f"resume {search}/{attempt}", found, TIMEOUT_SECONDS)
        steps, skipped = [step for step, _ in of_ranks], sorted({name for _, names in of_ranks for name in names})
        if None in steps:
            log_once("resume: rank %d finds no complete checkpoint on its machine", steps.index(None))
            return None, skipped
        limit = min(steps)
        if limit == max(steps):
            return limit, skipped
        log_once("resume: rank %d finds none newer than checkpoint-%d on its machine", steps.index(limit), limit)
    raise AssertionError("each attempt looks for an older one")
