"""Cards that compute no bf16 get the launch config in fp16."""

from pathlib import Path

import pytest
import torch

from unsloth_accel.ranks.gpu_config import gpu_config


# What a machine's torch says of its cards, by their compute capability.
CARDS = """
class cuda:
    device_count = staticmethod(lambda: {count})
    get_device_capability = staticmethod({capabilities}.__getitem__)
"""


@pytest.mark.parametrize(
    ("capabilities", "name"),
    [([], "ddp"), ([(8, 0), (9, 0)], "ddp"), ([(7, 5), (7, 5)], "ddp_fp16"), ([(8, 6), (7, 0)], "ddp_fp16")],
)
def test_the_oldest_card_decides(
    capabilities: list[tuple[int, int]], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text(CARDS.format(count=len(capabilities), capabilities=capabilities))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    assert gpu_config() == name


@pytest.mark.gpu
def test_cards_of_this_machine_are_asked_without_cuda() -> None:
    initialized = torch.cuda.is_initialized()
    assert gpu_config() in ("ddp", "ddp_fp16")
    assert torch.cuda.is_initialized() == initialized
