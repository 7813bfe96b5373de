"""The visible GPUs, and what connects them."""

import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from typing import Any

from ..ranks.gpu_config import BF16_FROM
from .finding import Finding
from .survey import NotAnswered, Survey, unanswered


# Unsloth's kernels are Triton's: https://triton-lang.org/main/getting-started/installation.html
TRITON_FROM = [7, 0]
# A card of which others hold more is no card to itself.
HELD_BY_OTHERS = 0.1
GIB = 2**30


def check_gpus(survey: Survey) -> Iterator[Finding]:
    """Each card: name, memory, compute capability, bf16; and whether the driver sees more of them than torch."""
    try:
        cards = survey.answer("gpus")
    except NotAnswered as reason:
        yield unanswered("gpus", reason)
        return
    if not cards:
        yield _none_visible()
    for index, card in enumerate(cards):
        yield _check_card(f"gpu {index}", card)
    names = {card["name"] for card in cards}
    if len(names) > 1:
        yield Finding(
            "gpus",
            "WARN",
            f"{', '.join(sorted(names))}: every step takes as long as the slowest of them needs",
            "CUDA_VISIBLE_DEVICES=... accelerate launch ...",
        )


def _none_visible() -> Finding:
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return Finding("gpus", "SKIP", "CUDA_VISIBLE_DEVICES hides all GPUs", "unset CUDA_VISIBLE_DEVICES")
    seen = [line for line in _nvidia_smi("--list-gpus").splitlines() if line.startswith("GPU ")]
    if not seen:
        return Finding("gpus", "SKIP", "no GPU: training runs on the CPU, which is for trying things out")
    return Finding(
        "gpus",
        "FAIL",
        f"nvidia-smi lists {len(seen)} GPUs, torch sees none: a build of torch without CUDA, a driver "
        "that is too old for it, or CUDA_VISIBLE_DEVICES",
        "echo $CUDA_VISIBLE_DEVICES; pip install --force-reinstall torch --index-url "
        "https://download.pytorch.org/whl/cu130",
    )


def _check_card(check: str, card: dict[str, Any]) -> Finding:
    capability = card["capability"]
    message = f"{card['name']}, {card['memory'] / GIB:.0f} GiB, compute capability {'.'.join(map(str, capability))}"
    if capability < TRITON_FROM:
        return Finding(check, "FAIL", f"{message}: Unsloth's kernels need 7.0", "use a newer card")
    if card["free"] < (1 - HELD_BY_OTHERS) * card["memory"]:
        return Finding(check, "WARN", f"{message}; only {card['free'] / GIB:.0f} GiB of it are free", "nvidia-smi")
    if capability < BF16_FROM:
        config = 'accelerate launch --config_file "$(unsloth-accel config path ddp_fp16)" ...'
        return Finding(check, "WARN", f"{message}, no bf16: train in fp16", config)
    return Finding(check, "PASS", f"{message}, bf16")


def check_links(survey: Survey) -> Iterator[Finding]:
    """What connects the cards, from the driver's matrix, and whether they read each other's memory."""
    try:
        cards, apart = survey.answer("gpus"), survey.answer("peer access")
    except NotAnswered as reason:
        yield unanswered("links", reason)
        return
    if len(cards) < 2:
        yield Finding("links", "SKIP", "fewer than two GPUs")
        return
    links = read_topology(_nvidia_smi("topo", "-m"))
    pairs_of = Counter(links.values())
    message = ", ".join(f"{count} x {link}" for link, count in sorted(pairs_of.items())) or "links unknown"
    if apart:
        pairs = ", ".join(f"{a}-{b}" for a, b in apart)
        yield Finding(
            "links",
            "WARN",
            f"{message}; no peer access between {pairs}: gradients go through the host's memory",
            "nvidia-smi topo -p2p r",
        )
    else:
        yield Finding("links", "PASS", f"{message}; peer access between all")


def read_topology(text: str) -> dict[tuple[int, int], str]:
    """The links in the matrix of `nvidia-smi topo -m`.

    Args:
        text (`str`): What it printed, whose legend explains the names: NV18 is 18 NVLinks, PIX one PCIe switch, PHB
            the host's bridge, SYS the link between sockets.

    Returns:
        `dict[tuple[int, int], str]`: The link of each pair of GPUs.
    """
    rows = [line.split() for line in re.sub(r"\x1b\[\d*m", "", text).splitlines() if re.match(r"\W*GPU\d+\s", line)]
    rows = [row for row in rows if "X" in row]  # not the head
    return {(a, b): rows[a][b + 1] for a in range(len(rows)) for b in range(a + 1, len(rows))}


def _nvidia_smi(*arguments: str) -> str:
    """What it prints; nothing where there is none, or where it finds no driver."""
    path = shutil.which("nvidia-smi")
    if path is None:
        return ""
    return subprocess.run([path, *arguments], capture_output=True, text=True, timeout=60, check=False).stdout
