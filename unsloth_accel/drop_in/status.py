"""What `get_multi_gpu_status` returns: a record to print, to compare and to store."""

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Decision:
    """One thing that was decided for the user.

    Args:
        name (`str`): What was decided.
        value (`str`): The outcome.
        reason (`str`): Why.
    """

    name: str
    value: str
    reason: str


@dataclass(frozen=True)
class MultiGPUStatus:
    """How this process takes part in multi-GPU training.

    Args:
        enabled (`bool`): Whether `enable_multi_gpu` is in effect.
        world_size (`int`): The number of ranks.
        rank (`int`): This process's rank.
        backend (`str`, *optional*): What the ranks talk through; `None` before the process group exists.
        devices (`tuple[str, ...]`): The GPUs visible to this process, or `"cpu"`.
        decisions (`tuple[Decision, ...]`): What was decided, and why.
        fixes (`tuple[str, ...]`): The compatibility fixes that are in place in this process now.
        peak_memory_gib (`tuple[float, ...]`): The peak GPU memory of each rank as of the last optimizer step; this
            rank's alone before the first; empty without a GPU.
    """

    enabled: bool
    world_size: int
    rank: int
    backend: str | None
    devices: tuple[str, ...]
    decisions: tuple[Decision, ...]
    fixes: tuple[str, ...]
    peak_memory_gib: tuple[float, ...]

    def to_json(self) -> str:
        """The record as JSON text."""
        return json.dumps(asdict(self), indent=2)

    def __str__(self) -> str:
        state = "enabled" if self.enabled else "not enabled"
        lines = [
            f"unsloth_accel {state}: rank {self.rank} of {self.world_size}, "
            f"backend {self.backend or 'none yet'}, {', '.join(self.devices)}",
            *(f"  {decision.name} = {decision.value}: {decision.reason}" for decision in self.decisions),
            f"  fixes applied: {', '.join(self.fixes) or 'none'}",
        ]
        if self.peak_memory_gib:
            lines.append(f"  peak GPU memory (GiB): {', '.join(f'{gib:.2f}' for gib in self.peak_memory_gib)}")
        return "\n".join(lines)
