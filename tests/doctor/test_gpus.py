"""What is said of cards and links, from what torch and the driver tell."""

import os
from pathlib import Path
from typing import Any

import pytest

from unsloth_accel.doctor.compatibility import check_attention
from unsloth_accel.doctor.finding import Finding
from unsloth_accel.doctor.gpus import check_gpus, check_links, read_topology
from unsloth_accel.doctor.survey import Survey


GIB = 2**30
# As NVIDIA's driver 580 prints it for four cards of a host, the escapes that underline its head included.
TOPOLOGY = """\
\t\x1b[4mGPU0\tGPU1\tGPU2\tGPU3\tNIC0\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\x1b[0m
GPU0\t X \tNV18\tPIX\tSYS\tPXB\t0-55\t0\t\tN/A
GPU1\tNV18\t X \tSYS\tSYS\tPXB\t0-55\t0\t\tN/A
GPU2\tPIX\tSYS\t X \tPHB\tSYS\t56-111\t1\t\tN/A
GPU3\tSYS\tSYS\tPHB\t X \tSYS\t56-111\t1\t\tN/A
NIC0\tPXB\tPXB\tSYS\tSYS\t X \t\t\t\t

Legend:

  X    = Self
  PIX  = Connection traversing at most a single PCIe bridge
"""


def card(name: str = "NVIDIA H200", capability: tuple[int, int] = (9, 0), free: float = 139.0) -> dict[str, Any]:
    return {"name": name, "capability": list(capability), "memory": 140 * GIB, "free": int(free * GIB)}


def gpus(*cards: dict[str, Any]) -> list[Finding]:
    return list(check_gpus(Survey({"gpus": list(cards)})))


def test_the_matrix_of_the_driver_is_read() -> None:
    expected = {(0, 1): "NV18", (0, 2): "PIX", (0, 3): "SYS", (1, 2): "SYS", (1, 3): "SYS", (2, 3): "PHB"}
    assert read_topology(TOPOLOGY) == expected
    assert read_topology("") == {}


def test_each_card_is_described() -> None:
    (found,) = gpus(card())
    assert found == Finding("gpu 0", "PASS", "NVIDIA H200, 140 GiB, compute capability 9.0, bf16")


def test_a_card_without_bf16_is_sent_to_the_fp16_config() -> None:
    (found,) = gpus(card("Tesla T4", (7, 5)))
    assert found.verdict == "WARN"
    assert found.message.endswith("compute capability 7.5, no bf16: train in fp16")
    assert "ddp_fp16" in found.mend


def test_a_card_that_triton_does_not_know_is_a_failure() -> None:
    assert [found.verdict for found in gpus(card("Tesla P100", (6, 0)))] == ["FAIL"]


def test_a_card_that_others_use_and_cards_that_differ_are_warnings() -> None:
    found = gpus(card(free=100), card("NVIDIA H100 80GB HBM3"))
    assert [one.verdict for one in found] == ["WARN", "PASS", "WARN"]
    assert "only 100 GiB of it are free" in found[0].message
    assert "as long as the slowest" in found[2].message


def test_cards_that_cannot_read_each_other_are_a_warning() -> None:
    two = {"gpus": [card(), card()]}
    (near,) = check_links(Survey({**two, "peer access": []}))
    (far,) = check_links(Survey({**two, "peer access": [[0, 1]]}))
    assert (near.verdict, far.verdict) == ("PASS", "WARN")
    assert "no peer access between 0-1" in far.message
    (one,) = check_links(Survey({"gpus": [card()], "peer access": []}))
    assert one.verdict == "SKIP"


def test_documents_that_are_attended_to_one_by_one_are_a_warning_that_says_what_to_install() -> None:
    slow = {"one_by_one": True, "reason": "torch 2.11.0 launches attention for each document"}
    fast = {"one_by_one": False, "reason": "torch 2.12.0 packs documents in one launch"}
    (found,) = check_attention(Survey({"gpus": [card()], "attention": slow}))
    assert found.verdict == "WARN"
    assert "flash-attn" in found.mend
    assert [one.verdict for one in check_attention(Survey({"gpus": [card()], "attention": fast}))] == ["PASS"]
    assert [one.verdict for one in check_attention(Survey({"gpus": [], "attention": fast}))] == ["SKIP"]


def test_hidden_cards_are_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    (found,) = gpus()
    assert (found.verdict, found.mend) == ("SKIP", "unset CUDA_VISIBLE_DEVICES")


def test_a_driver_that_shows_cards_which_torch_does_not_see_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver's tool that is first on the path."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H200 (UUID: GPU-1)'\necho 'GPU 1: NVIDIA H200 (UUID: GPU-2)'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (found,) = gpus()
    assert found.verdict == "FAIL"
    assert found.message.startswith("nvidia-smi lists 2 GPUs, torch sees none")


def test_a_question_that_raised_is_a_failure_unless_an_import_did() -> None:
    error = "RuntimeError: all CUDA-capable devices are busy or unavailable"
    (found,) = check_gpus(Survey(errors={"gpus": error}))
    assert (found.verdict, found.message) == ("FAIL", error)
    (found,) = check_gpus(Survey(errors={"gpus": error, "import torch": "ImportError: ..."}))
    assert found.verdict == "SKIP"
