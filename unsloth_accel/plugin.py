"""The one configuration object: every choice a user can make about how Unsloth's model runs on many ranks."""

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal, get_args

from .errors import ConfigurationError
from .step_plan import StepPlan


if TYPE_CHECKING:
    from accelerate.utils import DistributedDataParallelKwargs, KwargsHandler

GradientSync = Literal["auto", "deferred", "overlapped"]
CommHook = Literal["no", "bf16", "fp16"]

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
            When gradients are averaged over the ranks. `"deferred"`: in one flat reduction after the last
            micro-batch of an optimizer step. `"overlapped"`: by torch's DDP reducer, bucket by bucket during
            backward. `"auto"` chooses by the bytes of gradient and the kind of model, and logs the reason.
        find_unused_parameters (`bool`, *optional*):
            DDP's search for parameters without gradient; only used by `"overlapped"`. `None`: what
            TrainingArguments or a passed handler say, else `False` for dense text models and `True` for the rest.
        static_graph (`bool`, *optional*):
            DDP's static graph; only used by `"overlapped"`. `None`: what TrainingArguments or a passed handler say.
        gradient_as_bucket_view (`bool`, *optional*):
            Let gradients be views of DDP's buckets; only used by `"overlapped"`. `None`: what a passed handler says,
            else `True`, which saves one copy of the gradients.
        comm_hook (`str`, *optional*, defaults to `"no"`):
            Compress gradients on the wire: `"no"`, `"bf16"` or `"fp16"`. Rounds the gradients, needs NCCL and the
            DDP reducer, so a value other than `"no"` selects `"overlapped"`.
        plan (`str` or [`StepPlan`], *optional*, defaults to `"keep"`):
            How the rows of an optimizer step are computed by an SFT trainer. `"keep"`: as the micro-batches of the
            trainer's arguments. A [`StepPlan`] puts them together, keeps layers and balances the ranks as it says.
        resume (`str`, *optional*):
            `"auto"`: where `train()` is not told what to resume from, it goes on from the newest complete checkpoint
            in `output_dir`, and starts from the beginning if there is none. A path or `False` given to `train()` wins.

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
    plan: Literal["keep"] | StepPlan | None = None
    resume: Literal["auto"] | None = None

    def __post_init__(self) -> None:
        refuse_unknown_variables()
        self.gradient_sync = read_choice(self, "gradient_sync", get_args(GradientSync), "auto")
        self.comm_hook = read_choice(self, "comm_hook", get_args(CommHook), "no")
        if not isinstance(self.plan, StepPlan):
            self.plan = read_choice(self, "plan", ("keep",), "keep")
        self.resume = read_choice(self, "resume", ("auto",))
        for name in ("find_unused_parameters", "static_graph", "gradient_as_bucket_view"):
            setattr(self, name, read_boolean(self, name))
        if self.gradient_sync == "deferred" and self.comm_hook != "no":
            raise ConfigurationError(
                f"`comm_hook={self.comm_hook!r}` compresses inside DDP's reducer, which `gradient_sync='deferred'` "
                "does not use. Leave `comm_hook` at 'no', or set `gradient_sync='overlapped'`."
            )

    def explicit_ddp_fields(self) -> dict[str, bool]:
        """The fields of DDP's constructor that this plugin sets, without those left to the rule."""
        names = ("find_unused_parameters", "static_graph", "gradient_as_bucket_view")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def to_handlers(self, handlers: "Sequence[KwargsHandler] | None") -> "list[KwargsHandler]":
        """Expands the plugin into Accelerate's own handlers.

        Accelerate looks handlers up by exact class (a foreign one is a bare `KeyError`), so what the plugin says is
        written into a stock `DistributedDataParallelKwargs`: the one passed in, or a new one.

        Args:
            handlers (`list[KwargsHandler]`, *optional*):
                The handlers the user passed to the Accelerator. Their explicit values stay.

        Returns:
            `list[KwargsHandler]`: The same handlers, among them exactly one `DistributedDataParallelKwargs`.
        """
        from accelerate.utils import DistributedDataParallelKwargs

        expanded = list(handlers or ())
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
