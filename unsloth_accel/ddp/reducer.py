"""What the reducer of torch's DDP averages: it is told once, when DDP is built."""

from collections.abc import Set
from weakref import WeakKeyDictionary

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import ConfigurationError


_trained_when_built: WeakKeyDictionary[DistributedDataParallel, Set[str]] = WeakKeyDictionary()


def note_what_is_reduced(ddp: DistributedDataParallel) -> None:
    """Remembers what is trained now; to be called right after DDP is built, and without effect later."""
    _trained_when_built.setdefault(ddp, _trained(ddp.module))


def check_what_is_reduced(ddp: DistributedDataParallel) -> None:
    """Refuses layers that were frozen or unfrozen since [`note_what_is_reduced`].

    The reducer does not know what was unfrozen. Where it does not search for unused parameters, it waits for what was
    frozen, and leaves the gradients of its bucket, and of the buckets behind, as they are.

    Raises:
        ConfigurationError: Naming the parameter and what to do.
    """
    now, then = _trained(ddp.module), _trained_when_built[ddp]
    unfrozen, frozen = now - then, set() if ddp.find_unused_parameters else then - now
    if unfrozen or frozen:
        raise ConfigurationError(
            f"`requires_grad` of {min(unfrozen or frozen)} ({len(unfrozen | frozen)} parameters in all) has changed "
            "since the model was wrapped. Overlapped gradients are averaged by DDP's reducer, which goes by what was "
            "trained then, and the ranks would train apart. Set `gradient_sync='deferred'`, or freeze and unfreeze "
            "before `prepare` or the first `train`."
        )


def _trained(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}
