"""The one configuration object: every choice a user can make about how Unsloth's model runs on many ranks."""

import os
from collections.abc import Collection, Iterable, Sequence
from copy import copy
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal, get_args

from .errors import ConfigurationError
from .step_plan import StepPlan, StepPlanRecord


if TYPE_CHECKING:
    from accelerate.utils import DistributedDataParallelKwargs, KwargsHandler

GradientSync = Literal["auto", "deferred", "overlapped"]
CommHook = Literal["no", "bf16", "fp16"]
OutOfMemory = Literal["split", "raise"]

ENV_PREFIX = "UNSLOTH_ACCEL_"
# Read from the environment by `MultiGPUConfig`, which lies above this module; a test compares them with its fields.
MULTI_GPU_FIELDS = (
    "num_gpus",
    "batch_size_per_gpu",
    "ddp_backend",
    "enable_memory_optimization",
    "enable_gradient_checkpointing",
    "find_unused_parameters",
    "debug",
)

_BOOLEANS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


def read_field(config: object, name: str) -> tuple[str, Any]:
    """A field's value, or that of its environment variable; and which of the two it is, for an error's text."""
    value = getattr(config, name)
    variable = f"{ENV_PREFIX}{name.upper()}"
    if value is None and variable in os.environ:
        return variable, os.environ[variable]
    return name, value


def read_choice(config: object, name: str, allowed: tuple[str, ...], default: str | None = None) -> Any:
    """The field's value, which must be one of `allowed`, or the default."""
    source, value = read_field(config, name)
    if value is None:
        return default
    if value not in allowed:
        raise ConfigurationError(f"`{source}` must be one of {', '.join(map(repr, allowed))}, got {value!r}.")
    return value


def read_boolean(config: object, name: str) -> bool | None:
    """The field's value, which must be true or false, or None."""
    source, value = read_field(config, name)
    if value is None or isinstance(value, bool):
        return value
    if source == name or str(value).lower() not in _BOOLEANS:
        raise ConfigurationError(f"`{source}` must be true or false, got {value!r}.")
    return _BOOLEANS[str(value).lower()]


def read_share(config: object, name: str, default: float) -> float:
    """The field's value, which must be a number from 0 to below 1, or the default."""
    source, value = read_field(config, name)
    if value is None:
        return default
    try:
        share = float(value)
    except (TypeError, ValueError):
        share = -1.0
    if isinstance(value, bool) or not 0 <= share < 1:
        raise ConfigurationError(f"`{source}` must be a number from 0 to below 1, got {value!r}.")
    return share


def read_seconds(config: object, name: str, default: float, least: float) -> float:
    """The field's value, which must be a number of seconds from `least` on, or the default."""
    source, value = read_field(config, name)
    if value is None:
        return default
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = 0.0
    if isinstance(value, bool) or not seconds >= least:
        raise ConfigurationError(f"`{source}` must be a number of seconds, at least {least:g}, got {value!r}.")
    return seconds


def refuse_unknown(given: Iterable[str], known: Collection[str], where: str) -> None:
    """Raises for the first name that is not known, with the nearest one that is.

    Raises:
        ConfigurationError: Naming it and, after `where`, what it is not.
    """
    for name in given:
        if name not in known:
            nearest = get_close_matches(str(name), sorted(known), n=1)
            hint = f" Did you mean `{nearest[0]}`?" if nearest else f" Known: {', '.join(sorted(known))}."
            raise ConfigurationError(f"`{name}`{where}.{hint}")


def refuse_unknown_variables() -> None:
    """Raises for a variable with our prefix that nothing reads: it is misspelt, and would do nothing."""
    known = {f"{ENV_PREFIX}{name.upper()}" for name in (*PLUGIN_FIELDS, *MULTI_GPU_FIELDS)}
    given = [variable for variable in os.environ if variable.startswith(ENV_PREFIX)]
    refuse_unknown(given, known, " in the environment is no setting of unsloth_accel")


@dataclass(kw_only=True)
class UnslothAcceleratorPlugin:
    """Configures how Accelerate prepares an Unsloth model for data-parallel training.

    A field left at `None` is read from the environment variable `UNSLOTH_ACCEL_<FIELD>` (upper case) and falls back
    to the default named below. What you set explicitly always wins over what the package would choose.

    Args:
        gradient_sync (`str`, *optional*, defaults to `"auto"`):
            When gradients are averaged over the ranks. `"deferred"`: in one reduction at the end of each backward
            outside `no_sync()`. `"overlapped"`: by torch's DDP reducer, bucket by bucket during
            backward. `"auto"` chooses by the bytes of gradient and the kind of model, and logs the reason.
        find_unused_parameters (`bool`, *optional*):
            DDP's search for parameters without gradient; only used by `"overlapped"`. `None`: what
            TrainingArguments or a passed handler say, else `True` for several adapters, a vision or audio tower and
            trained experts that are modules of their own, `False` for the rest.
        static_graph (`bool`, *optional*):
            DDP's static graph; only used by `"overlapped"`. `None`: what TrainingArguments or a passed handler say.
        gradient_as_bucket_view (`bool`, *optional*):
            Let gradients be views of DDP's buckets; only used by `"overlapped"`. `None`: what a passed handler says,
            else `True`, which saves one copy of the gradients.
        comm_hook (`str`, *optional*, defaults to `"no"`):
            Compress gradients on the wire: `"no"`, `"bf16"` or `"fp16"`. Rounds the gradients, needs NCCL and the
            DDP reducer, so a value other than `"no"` selects `"overlapped"`.
        plan (`str`, [`StepPlan`] or [`StepPlanRecord`], *optional*):
            How the rows of an optimizer step are computed by an SFT trainer. `"keep"`: as the micro-batches of the
            trainer's arguments. `"auto"`: put together, with layers that are not recomputed and rows balanced over the
            ranks, as memory allows and as is fastest in the first steps. A plan is followed as it is; in the
            environment it is JSON, as `to_json()` gives it. Defaults to `"auto"` on several ranks with GPUs, else to
            `"keep"`.
        balance (`bool`, *optional*):
            Whether the rows of a step are dealt to the ranks by what they cost, instead of by their number. Defaults
            to whether the plan is `"auto"`; a [`StepPlan`] says it itself.
        memory_margin (`float`, *optional*, defaults to 0.1):
            The share of each GPU's memory that `plan="auto"` leaves alone: for fragments, evaluation, and others who
            use the card.
        on_oom (`str`, *optional*, defaults to `"split"`):
            What a planned step does where a batch does not fit into memory. `"split"`: it is cut and computed again.
            `"raise"`: the error is raised.
        resume (`str`, *optional*):
            `"auto"`: where `train()` is not told what to resume from, it goes on from the newest complete checkpoint
            in `output_dir`, and starts from the beginning if there is none. A path or `False` given to `train()` wins.
        stall_timeout (`float`, *optional*, defaults to 110.0):
            After how many seconds of waiting for a rank that died, is stopped or does not come, the others end and say
            which and where: at least 10. Saves, evaluations and what runs under `run_once` may last longer. `inf`
            waits as long as torch does.

    Raises:
        ConfigurationError: If a value, or an environment variable that supplies one, is not allowed, or a variable
            `UNSLOTH_ACCEL_...` is misspelt.

    Example:

    ```python
    >>> from unsloth_accel import UnslothAcceleratorPlugin

    >>> plugin = UnslothAcceleratorPlugin(gradient_sync="deferred")
    >>> plugin.comm_hook
    'no'
    ```
    """

    gradient_sync: GradientSync | None = None
    find_unused_parameters: bool | None = None
    static_graph: bool | None = None
    gradient_as_bucket_view: bool | None = None
    comm_hook: CommHook | None = None
    plan: Literal["auto", "keep"] | StepPlan | StepPlanRecord | None = None
    balance: bool | None = None
    memory_margin: float | None = None
    on_oom: OutOfMemory | None = None
    resume: Literal["auto"] | None = None
    stall_timeout: float | None = None

    def __post_init__(self) -> None:
        refuse_unknown_variables()
        self.gradient_sync = read_choice(self, "gradient_sync", get_args(GradientSync), "auto")
        self.comm_hook = read_choice(self, "comm_hook", get_args(CommHook), "no")
        self.plan = self._read_plan()
        self.memory_margin = read_share(self, "memory_margin", 0.1)
        self.on_oom = read_choice(self, "on_oom", get_args(OutOfMemory), "split")
        self.resume = read_choice(self, "resume", ("auto",))
        self.stall_timeout = read_seconds(self, "stall_timeout", 110.0, least=10.0)
        for name in ("find_unused_parameters", "static_graph", "gradient_as_bucket_view", "balance"):
            setattr(self, name, read_boolean(self, name))
        if self.gradient_sync == "deferred" and self.comm_hook != "no":
            raise ConfigurationError(
                f"`comm_hook={self.comm_hook!r}` compresses inside DDP's reducer, which `gradient_sync='deferred'` "
                "does not use. Leave `comm_hook` at 'no', or set `gradient_sync='overlapped'`."
            )
        if self.gradient_sync == "deferred" and self.static_graph:
            raise ConfigurationError(
                "`static_graph=True` is for DDP's reducer, which `gradient_sync='deferred'` does not use. Leave "
                "`static_graph` out, or set `gradient_sync='overlapped'`."
            )
        if isinstance(self.plan, StepPlan) and self.balance is not None:
            raise ConfigurationError(
                f"`balance={self.balance}` is given beside a `plan` that has a `balance` of its own: set that one."
            )

    def _read_plan(self) -> "Literal['auto', 'keep'] | StepPlan | None":
        """A plan that is given, also as JSON in the environment; `"auto"`, `"keep"`, or None, where it is up to us."""
        if isinstance(self.plan, StepPlanRecord):
            return self.plan.plan
        if isinstance(self.plan, StepPlan):
            return self.plan
        source, value = read_field(self, "plan")
        if source != "plan" and str(value).startswith("{"):
            return StepPlan.from_json(str(value))
        if value in ("auto", "keep", None):
            return value  # type: ignore[no-any-return]
        raise ConfigurationError(
            f"`{source}` must be 'auto', 'keep' or a `StepPlan`, in the environment as JSON, got {value!r}."
        )

    def explicit_ddp_fields(self) -> dict[str, bool]:
        """The fields of DDP's constructor that this plugin sets, without those left to the rule."""
        names = ("find_unused_parameters", "static_graph", "gradient_as_bucket_view")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def to_handlers(self, handlers: "Sequence[KwargsHandler] | None") -> "list[KwargsHandler]":
        """Expands the plugin into Accelerate's own handlers.

        Accelerate looks handlers up by exact class (a foreign one is a bare `KeyError`), so what the plugin says is
        written into a stock `DistributedDataParallelKwargs`: a copy of the one passed in, or a new one.

        Args:
            handlers (`list[KwargsHandler]`, *optional*):
                The handlers the user passed to the Accelerator. Their explicit values stay.

        Returns:
            `list[KwargsHandler]`: The handlers, among them exactly one `DistributedDataParallelKwargs`. It is not the
            one passed in, in which what is written here would look like the user's choice the next time.
        """
        from accelerate.utils import DistributedDataParallelKwargs

        expanded = [copy(h) if isinstance(h, DistributedDataParallelKwargs) else h for h in handlers or ()]
        if not any(isinstance(handler, DistributedDataParallelKwargs) for handler in expanded):
            expanded.append(DistributedDataParallelKwargs())
        ddp = next(handler for handler in expanded if isinstance(handler, DistributedDataParallelKwargs))
        self.write_into(ddp)
        return expanded

    def write_into(self, ddp: "DistributedDataParallelKwargs") -> None:
        """Sets in Accelerate's handler what was asked for here."""
        from accelerate.utils import DDPCommunicationHookType

        for name, value in self.explicit_ddp_fields().items():
            setattr(ddp, name, value)
        if self.comm_hook != "no":
            ddp.comm_hook = DDPCommunicationHookType(self.comm_hook)


PLUGIN_FIELDS = tuple(field.name for field in fields(UnslothAcceleratorPlugin))
