"""What averaging the gradients takes: a ring over all ranks."""

import math
from dataclasses import dataclass

from ..ddp.chunks import CHUNK_BYTES
from ..ddp.policy import DEFERRED_BYTES_LIMIT


RANKS_OF_HOST = 8
# Microseconds: NCCL's own figures for its rings, of a call, of a step over NVLink and of a step over a network.
# https://github.com/NVIDIA/nccl/blob/01afd20a77b5804e0ecf1042509dd9d20ebf9e93/src/graph/tuning.cc
CALL_US, HOST_STEP_US, NETWORK_STEP_US = 8.4, 3.4, 9.6
# What DDP's reducer cannot hide: its last bucket is full when backward is over. 25 MiB is its default.
# https://docs.pytorch.org/docs/stable/generated/torch.nn.parallel.DistributedDataParallel.html
BUCKET_BYTES = 25 * 2**20
# Of the time of a step, what backward is of forward and backward, in which DDP's reducer can hide what it sends.
BACKWARD = 0.5


@dataclass(frozen=True)
class Links:
    """The bus bandwidths, as `unsloth-accel doctor --launch` measures them.

    Args:
        host (`float`, *optional*, defaults to 300.0):
            GB/s between the GPUs of a host. NVLink of an H100 reaches 300 and more, PCIe 5 to 20.
        network (`float`, *optional*, defaults to 12.5):
            GB/s of a host to the next one, all its network cards together: 12.5 is 100 Gbit/s.
    """

    host: float = 300.0
    network: float = 12.5


def all_reduce_ms(size: int, ranks: int, links: Links) -> float:
    """The time of one all-reduce.

    A ring sends `2 (W - 1) / W` of the bytes over its slowest link, in `2 (W - 1)` steps (Patarasuk and Yuan 2009,
    "Bandwidth optimal all-reduce algorithms for clusters of workstations", https://doi.org/10.1016/j.jpdc.2008.09.002).
    NCCL takes trees where they are faster, which is with many hosts: there this is too much.

    Args:
        size (`int`): Bytes.
        ranks (`int`): The ranks, 8 on each host.
        links (`Links`): The bandwidths.
    """
    if ranks == 1:
        return 0.0
    hosts = math.ceil(ranks / RANKS_OF_HOST)
    bandwidth = links.host if hosts == 1 else links.network
    network_steps = 2 * (hosts - 1)
    steps_us = (2 * (ranks - 1) - network_steps) * HOST_STEP_US + network_steps * NETWORK_STEP_US
    return 2 * (ranks - 1) / ranks * size / (bandwidth * 1e6) + (CALL_US + steps_us) / 1000


def exposed_ms(gradient_bytes: int, ranks: int, links: Links, compute_ms: float) -> float:
    """What averaging adds to a step.

    Deferred, all of it, in chunks. Overlapped, what is longer than backward, and at least the last bucket (Li et al.
    2020, "PyTorch Distributed", section 3.2.3, https://arxiv.org/abs/2006.15704).

    Args:
        gradient_bytes (`int`): What a rank contributes.
        ranks (`int`): The ranks.
        links (`Links`): The bandwidths.
        compute_ms (`float`): What the step takes besides.
    """
    if ranks == 1:
        return 0.0
    if gradient_bytes <= DEFERRED_BYTES_LIMIT:
        return _in_parts(gradient_bytes, CHUNK_BYTES, ranks, links)
    last = all_reduce_ms(min(BUCKET_BYTES, gradient_bytes), ranks, links)
    return max(last, _in_parts(gradient_bytes, BUCKET_BYTES, ranks, links) - BACKWARD * compute_ms)


def _in_parts(size: int, part: int, ranks: int, links: Links) -> float:
    whole, rest = divmod(size, part)
    return whole * all_reduce_ms(part, ranks, links) + (all_reduce_ms(rest, ranks, links) if rest else 0.0)
