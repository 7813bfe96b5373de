"""Who is compared: each name, and what it sets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ..errors import ConfigurationError
from ..plugin import UnslothAcceleratorPlugin
from ..step_plan import StepPlan


Library = Literal["unsloth", "trl", "liger"]


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One way to train the rows.

    Args:
        library (`str`): `"unsloth"`, `"trl"` (with PEFT) or `"liger"` (TRL, PEFT and Liger kernels). Each has
            processes of its own: Unsloth's import changes the others, and so do Liger's kernels.
        varlen (`bool`): Whether Unsloth gets one attention launch per layer, which it has by itself with torch 2.12,
            flash-attn or xformers. This package sees to that on several ranks; here all ours have it on one, too.
        plugin (`Mapping`, *optional*): The fields of this package's plugin; `None` for all who do without it.
        tunes (`bool`): Whether it first finds a plan in a run that is not timed; those that are then follow that plan.
        environment (`Mapping[str, str]`): What is set while it trains.
        arguments (`Mapping`): What it adds to the training arguments.
    """

    library: Library = "unsloth"
    varlen: bool = False
    plugin: Mapping[str, Any] | None = None
    tunes: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)


_CHECKPOINTING = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}

CONTENDERS = {
    "plain": Contender(),
    "varlen": Contender(varlen=True),
    "token-balance": Contender(varlen=True, environment={"UNSLOTH_TOKEN_BALANCE": "1"}),
    "rebalance": Contender(varlen=True, arguments={"train_sampling_strategy": "batch_rebalance"}),
    "keep": Contender(varlen=True, plugin={"plan": "keep"}),
    "auto": Contender(varlen=True, plugin={"plan": "auto"}, tunes=True),
    "deferred": Contender(varlen=True, plugin={"plan": "keep", "gradient_sync": "deferred"}),
    "overlapped": Contender(varlen=True, plugin={"plan": "keep", "gradient_sync": "overlapped"}),
    "balanced": Contender(varlen=True, plugin={"plan": StepPlan()}),
    "pieces": Contender(varlen=True, plugin={"plan": StepPlan(pieces=1)}),
    "planned": Contender(varlen=True, plugin={"plan": StepPlan(pieces=1, layers_kept="all")}),
    "trl": Contender(library="trl", arguments=_CHECKPOINTING),
    "liger": Contender(library="liger", arguments={**_CHECKPOINTING, "use_liger_kernel": True}),
}


def check(names: Sequence[str], on_cpu: bool) -> None:
    """Raises for a contender that is unknown, or that cannot train here.

    Args:
        names (`Sequence[str]`): Keys of `CONTENDERS`.
        on_cpu (`bool`): Whether they train without a GPU.

    Raises:
        ConfigurationError: Before any process is started.
    """
    for name in names:
        if name not in CONTENDERS:
            raise ConfigurationError(f"`contenders` must be of {', '.join(CONTENDERS)}; got {name!r}.")
        contender = CONTENDERS[name]
        if on_cpu and contender.library != "unsloth":
            raise ConfigurationError(
                f"`contenders` has {name!r}, but TRL's loss needs a GPU. Leave it out on the CPU."
            )
        if contender.plugin is not None:
            UnslothAcceleratorPlugin(**contender.plugin)
