"""A disk that is full is called that, whatever was writing."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from unsloth_accel.ranks.restarts import may_get_better
from unsloth_accel.saving.full_disk import named_full_disk


def with_torch(file: Path) -> None:
    import torch

    torch.save(torch.zeros(10**6), file)


def with_safetensors(file: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(10**6)}, file)


@pytest.mark.parametrize("write", [with_torch, with_safetensors])
def test_it_is_named(write: Callable[[Path], None], full_disk: Path) -> None:
    if not full_disk.is_dir():
        pytest.skip("this user may not mount a small disk")
    with pytest.raises(OSError, match="No space left on device") as caught, named_full_disk(str(full_disk)):
        write(full_disk / "file")
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(full_disk)
    assert not may_get_better(caught.value)
    for left in full_disk.iterdir():
        left.unlink()


def test_another_error_is_raised_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="of its own"), named_full_disk(str(tmp_path)):
        raise ValueError("an error of its own")
