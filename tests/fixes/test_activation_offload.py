import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from harness import ON_CPU, ROOT
from unsloth_accel.fixes import activation_offload


def loaded(non_reentrant: bool, checkpointing: bool | str) -> SimpleNamespace:
    return SimpleNamespace(_unsloth_vlm_gc_non_reentrant=non_reentrant, _unsloth_gradient_checkpointing=checkpointing)


@pytest.mark.parametrize(
    ("model", "needed"),
    [
        (loaded(True, "unsloth"), True),
        (loaded(True, True), False),
        (loaded(False, "unsloth"), False),
        (SimpleNamespace(), False),
        (None, False),
    ],
)
def test_is_needed_where_hooks_move_the_activations(
    model: SimpleNamespace | None, needed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(activation_offload.VARIABLE, raising=False)
    assert activation_offload.probe(model).needed == needed


@pytest.mark.parametrize("value", ["unsloth_stream", ""])
def test_what_the_user_chose_stays(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(activation_offload.VARIABLE, value)
    assert not activation_offload.probe(loaded(True, "unsloth")).needed


@pytest.mark.cpu
def test_unsloth_takes_the_offloader_and_gets_its_own_back() -> None:
    code = """
import unsloth
from unsloth_zoo import gradient_checkpointing as checkpointing
from unsloth_accel.fixes import activation_offload

before = checkpointing.NONREENTRANT_OFFLOADER
undo = activation_offload.apply(None)
hooks = checkpointing.non_reentrant_offload_hooks()
print("prefetches", hooks.pack_hook.__self__.stream_mode)
undo()
print("restored", checkpointing.NONREENTRANT_OFFLOADER is before)
checkpointing.non_reentrant_offload_hooks()
print("Unsloth's own prefetches", checkpointing.NONREENTRANT_OFFLOADER.stream_mode)
"""
    environment = {**os.environ, **ON_CPU, "PYTHONPATH": str(ROOT)}
    environment.pop(activation_offload.VARIABLE, None)
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-3:] == ["prefetches True", "restored True", "Unsloth's own prefetches False"]
