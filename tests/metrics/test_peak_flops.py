"""The dense peak of a card is found by the name that torch gives it, or it is not known."""

import pytest

from unsloth_accel.metrics.peak_flops import peak_flops


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.5),
        ("NVIDIA H200 NVL", 835.5),
        ("NVIDIA GH200 480GB", 989.5),
        ("NVIDIA B200", 2250.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A100 80GB PCIe", 312.0),
        ("NVIDIA A100-PCIE-40GB", 312.0),
        ("NVIDIA A10", 125.0),
        ("NVIDIA A10G", 70.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.1),
        ("Tesla T4", 65.0),
        ("Tesla V100-SXM2-16GB", 125.0),
        ("Tesla V100-PCIE-32GB", 112.0),
        # As in the appendices of NVIDIA's whitepapers on Ampere GA102, Ada and RTX Blackwell.
        ("NVIDIA GeForce RTX 3090", 71.0),
        ("NVIDIA GeForce RTX 3080", 59.5),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 4080 SUPER", 104.4),
        ("NVIDIA GeForce RTX 5090", 209.5),
        ("NVIDIA RTX A6000", 154.8),
        ("NVIDIA RTX 6000 Ada Generation", 364.2),
    ],
)
def test_a_card_in_float16(name: str, teraflops: float) -> None:
    assert peak_flops(name, bf16=False) == pytest.approx(teraflops * 1e12, rel=3e-3)


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 3090 Ti Laptop GPU",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA H100 80GB HBM2e",
        "NVIDIA A100X",
        "Quadro T400",
        "Tesla V100-SXM3-32GB",
        "AMD Instinct MI300X",
        "",
    ],
)
def test_a_card_that_only_looks_like_one_in_the_table_is_not_known(name: str) -> None:
    assert peak_flops(name, bf16=False) is None


@pytest.mark.parametrize(
    ("name", "teraflops"), [("Tesla T4", None), ("Tesla V100-SXM2-16GB", None), ("NVIDIA L4", 121.0)]
)
def test_tensor_cores_before_ampere_do_not_know_bfloat16(name: str, teraflops: float | None) -> None:
    assert peak_flops(name, bf16=True) == (None if teraflops is None else teraflops * 1e12)
