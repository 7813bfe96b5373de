"""The file by which a user asks a run to stop: `touch OUTPUT_DIR/stop`."""

import logging
import os
import threading
from pathlib import Path
from types import TracebackType

from ..ranks.environment import restart_count
from ..ranks.run_once import run_once


STOP_FILE = "stop"
LOOK_SECONDS = 2.0

logger = logging.getLogger(__name__)


class StopFile:
    """While it is entered, a thread of this rank looks every 2 seconds whether the file is there.

    To look takes microseconds, but a network file system that does not answer keeps whoever looks for as long as its
    server is away. So that is neither the main thread, which has a step to compute, nor the one whose heartbeat tells
    the others that this rank lives; and nobody waits for its end.

    One that lies there at the start was meant for a run before, and is removed. Not so after a restart by the
    launcher: who made it while the ranks crashed still waits for the stop.

    Args:
        output_dir (`str`): The trainer's. Where machines have folders of their own, a file in any of them counts.
    """

    def __init__(self, output_dir: str) -> None:
        self._file = Path(output_dir, STOP_FILE)
        self._seen, self._over = threading.Event(), threading.Event()

    def __enter__(self) -> "StopFile":
        if restart_count() == 0:
            # Before any of them looks.
            run_once(self._remove_old, key="stop_file", description="removing an old stop file", scope="node")
        threading.Thread(target=self._look, name="unsloth_accel-stop-file", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        if kind is None and self.seen:
            self._file.unlink(missing_ok=True)  # other ranks may have seen it, too

    @property
    def seen(self) -> bool:
        """Whether this rank has seen the file, which counts once for all."""
        return self._seen.is_set()

    def _remove_old(self) -> None:
        if os.path.isfile(self._file):
            self._file.unlink(missing_ok=True)  # the first rank of another machine may have removed it, too
            logger.warning("%s was there before training began: it is removed, and stops nothing", self._file)

    def _look(self) -> None:
        while not os.path.isfile(self._file):
            if self._over.wait(LOOK_SECONDS):
                return
        self._seen.set()
