"""Keeps ranks that were started anew from reading what those before them left in the launcher's store."""

import sys
from typing import Any

from ..patching import Undo, replace_attribute
from ..ranks.environment import agent_hosts_store, restart_count
from .fix import Fix, Verdict


# Not an attribute of `torch.distributed`, which has a function of that name.
MODULE = "torch.distributed.rendezvous"


def probe(model: Any) -> Verdict:
    """torch put the number of the attempt before each key, until the change that is linked below."""
    if restart_count() > 0 and agent_hosts_store():
        return Verdict(True, "the ranks were restarted, and the launcher's store holds the addresses of those before")
    return Verdict(False, "the ranks have not been restarted")


def apply(model: Any) -> Undo | None:
    """Puts the number of the attempt before each key. The process group must not exist yet."""
    import torch.distributed as dist

    module = sys.modules[MODULE]
    original = module._create_c10d_store

    def create(*args: Any, **kwargs: Any) -> dist.Store:
        return dist.PrefixStore(f"attempt/{restart_count()}", original(*args, **kwargs))

    return replace_attribute(module, "_create_c10d_store", create)


FIX = Fix(
    name="restarted_ranks",
    symptom=(
        "`accelerate launch --max_restarts`: after a crash the new ranks wait for each other, and end with "
        '"Gloo connectFullMesh failed", "Connection refused".'
    ),
    remedy="Each attempt has keys of its own in the launcher's store: no rank looks for one that has died.",
    upstream="https://github.com/pytorch/pytorch/pull/135957",
    until=None,
    probe=probe,
    apply=apply,
    stage="restart",
)
