"""What a GPU can compute at most, as its maker says: dense 16-bit tensor cores that accumulate in 32 bits."""

import re


# TFLOP/s without sparsity, by the words of `torch.cuda.get_device_name()`. Where a maker gives figures with 2:4
# sparsity alone, half of them. Server cards with a figure for each form have no entry without it.
_DATASHEETS = {
    # https://www.nvidia.com/en-us/data-center/gb200-nvl72/ and gb300-nvl72/, hgx/
    "GB300": 2500.0,
    "GB200": 2500.0,
    "B300": 2250.0,
    "B200": 2250.0,
    # https://www.nvidia.com/en-us/data-center/h200/ and h100/; the H100 with HBM3 has the SXM form
    "H200 NVL": 835.5,
    "H200": 989.5,
    "GH200": 989.5,
    "H100 NVL": 835.5,
    "H100 PCIE": 756.5,
    "H100 80GB HBM3": 989.5,
    # https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf
    "A100": 312.0,
    # https://www.nvidia.com/en-us/data-center/products/a30-gpu/
    "A30": 165.0,
    # https://images.nvidia.com/content/Solutions/data-center/a40/nvidia-a40-datasheet.pdf
    "A40": 149.7,
    # https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a10/pdf/a10-datasheet.pdf
    "A10": 125.0,
    # https://d1.awsstatic.com/product-marketing/ec2/NVIDIA_AWS_A10G_DataSheet_FINAL_02_17_2022.pdf
    "A10G": 70.0,
    # https://www.nvidia.com/en-us/data-center/l40s/, l40/ and l4/
    "L40S": 362.1,
    "L40": 181.1,
    "L4": 121.0,
    # https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/tesla-t4/t4-tensor-core-datasheet-951643.pdf
    "T4": 65.0,
    # https://images.nvidia.com/content/technologies/volta/pdf/volta-v100-datasheet-update-us-1165301-r5.pdf
    "V100 SXM2": 125.0,
    "V100 PCIE": 112.0,
}

# Multiprocessors and boost clock in GHz, https://www.nvidia.com/en-us/geforce/graphics-cards/compare/. In each clock
# the tensor cores of one do so many operations, in GeForce cards half of what they do in professional ones:
# https://www.nvidia.com/content/PDF/nvidia-ampere-ga-102-gpu-architecture-whitepaper-v2.pdf
# https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf
# https://images.nvidia.com/aem-dam/Solutions/geforce/blackwell/nvidia-rtx-blackwell-gpu-architecture.pdf
_GEFORCE_FLOPS, _PROFESSIONAL_FLOPS = 512, 1024
_GEFORCE = {
    "RTX 3060": (28, 1.777),
    "RTX 3060 TI": (38, 1.665),
    "RTX 3070": (46, 1.725),
    "RTX 3070 TI": (48, 1.770),
    "RTX 3080": (68, 1.710),
    "RTX 3080 TI": (80, 1.665),
    "RTX 3090": (82, 1.695),
    "RTX 3090 TI": (84, 1.860),
    "RTX 4060": (24, 2.460),
    "RTX 4060 TI": (34, 2.535),
    "RTX 4070": (46, 2.475),
    "RTX 4070 SUPER": (56, 2.475),
    "RTX 4070 TI": (60, 2.610),
    "RTX 4070 TI SUPER": (66, 2.610),
    "RTX 4080": (76, 2.505),
    "RTX 4080 SUPER": (80, 2.550),
    "RTX 4090": (128, 2.520),
    "RTX 5060 TI": (36, 2.572),
    "RTX 5070": (48, 2.512),
    "RTX 5070 TI": (70, 2.452),
    "RTX 5080": (84, 2.617),
    "RTX 5090": (170, 2.407),
}
_PROFESSIONAL = {
    "RTX A4000": (48, 1.560),
    "RTX A5000": (64, 1.695),
    "RTX A6000": (84, 1.800),
    "RTX 6000 ADA GENERATION": (142, 2.505),
}

_TERAFLOPS = {
    **_DATASHEETS,
    **{card: count * _GEFORCE_FLOPS * clock / 1000 for card, (count, clock) in _GEFORCE.items()},
    **{card: count * _PROFESSIONAL_FLOPS * clock / 1000 for card, (count, clock) in _PROFESSIONAL.items()},
}
_WITHOUT_BF16 = ("T4", "V100")

_MAKERS = {"NVIDIA", "TESLA", "GEFORCE"}
# What may follow a card's name and changes nothing of its peak: memory, and the form of a card that has one figure.
_WITHOUT_MEANING = re.compile(r"\d+GB?|HBM3E?|SXM\d|PCIE")


def peak_flops(name: str, *, bf16: bool) -> float | None:
    """The dense peak of a GPU.

    Args:
        name (`str`): What `torch.cuda.get_device_name()` says.
        bf16 (`bool`): Whether it computes in bfloat16, instead of float16.

    Returns:
        `float` or `None`: FLOP/s, or None for a card that is not in the table, a part of one (MIG), or one whose
        tensor cores do not know bfloat16.
    """
    words = [word for word in re.split(r"[ -]+", name.upper()) if word not in _MAKERS]
    for count in range(len(words), 0, -1):
        card, rest = " ".join(words[:count]), words[count:]
        if card in _TERAFLOPS and all(map(_WITHOUT_MEANING.fullmatch, rest)):
            return None if bf16 and card.startswith(_WITHOUT_BF16) else _TERAFLOPS[card] * 1e12
    return None
