"""Says that a disk is full where what was writing says something else."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager


# A disk with less is full: writers stop at what does not fit, not at the last byte.
LEFT_BYTES = 2**20


@contextmanager
def named_full_disk(folder: str) -> Iterator[None]:
    """What is written inside goes to `folder`, which exists.

    torch.save on a full disk raises `RuntimeError: unexpected pos 576 vs 534`, safetensors an error of its own.

    Raises:
        OSError: In their place, with the number of a full disk (`errno.ENOSPC`), and the folder.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # whatever its type, as safetensors' is not public; raised again, or named
        if shutil.disk_usage(folder).free < LEFT_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), folder) from error
        raise
