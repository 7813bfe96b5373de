"""The settings of `enable_multi_gpu`, from arguments, a dict, a YAML file or the environment."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from ..errors import ConfigurationError
from ..plugin import (
    UnslothAcceleratorPlugin,
    read_boolean,
    read_choice,
    read_field,
    refuse_unknown,
    refuse_unknown_variables,
)
from ..ranks.gpu_config import gpu_config


DDPBackend = Literal["nccl", "gloo"]


@dataclass(kw_only=True)
class MultiGPUConfig:
    """Configures multi-GPU training for a script that is not changed.

    A field left at `None` is read from the environment variable `UNSLOTH_ACCEL_<FIELD>` (upper case); where that is
    not set, what the script says stays.

    Args:
        num_gpus (`int`, *optional*):
            How many ranks. `launch_ddp_training` starts that many; on a rank it must equal the launcher's world size.
        batch_size_per_gpu (`int`, *optional*):
            Replaces `per_device_train_batch_size` of the script's TrainingArguments.
        ddp_backend (`str`, *optional*):
            `"nccl"` (GPUs) or `"gloo"` (CPU). `launch_ddp_training` launches the config `ddp` or `cpu_gloo` with it; a
            process group that already runs on another backend is an error when the trainer is built.
        enable_memory_optimization (`bool`, *optional*):
            The field `plan` of [`UnslothAcceleratorPlugin`]: `True` for `"auto"`, which fits each step into the
            memory there is, `False` for `"keep"`.
        enable_gradient_checkpointing (`bool`, *optional*):
            Replaces `gradient_checkpointing` of the script's TrainingArguments, and what the model was set up with.
        find_unused_parameters (`bool`, *optional*):
            The field of the same name of [`UnslothAcceleratorPlugin`]; only DDP's own reducer searches.
        debug (`bool`, *optional*):
            Logs at level DEBUG, and lets torch.distributed check every collective on all ranks
            (`TORCH_DISTRIBUTED_DEBUG=DETAIL`), which is slow.

    Raises:
        ConfigurationError: If a value, or an environment variable that supplies one, is not allowed, or a variable
            `UNSLOTH_ACCEL_...` is misspelt.

    Example:

    ```python
    >>> from unsloth_accel import MultiGPUConfig

    >>> MultiGPUConfig.from_dict({"num_gpus": 2, "batch_size_per_gpu": 4}).num_gpus
    2
    ```
    """

    num_gpus: int | None = None
    batch_size_per_gpu: int | None = None
    ddp_backend: DDPBackend | None = None
    enable_memory_optimization: bool | None = None
    enable_gradient_checkpointing: bool | None = None
    find_unused_parameters: bool | None = None
    debug: bool | None = None

    def __post_init__(self) -> None:
        refuse_unknown_variables()
        self.num_gpus = self._positive("num_gpus")
        self.batch_size_per_gpu = self._positive("batch_size_per_gpu")
        self.ddp_backend = read_choice(self, "ddp_backend", get_args(DDPBackend))
        self.enable_memory_optimization = read_boolean(self, "enable_memory_optimization")
        self.enable_gradient_checkpointing = read_boolean(self, "enable_gradient_checkpointing")
        self.find_unused_parameters = read_boolean(self, "find_unused_parameters")
        self.debug = read_boolean(self, "debug")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "MultiGPUConfig":
        """Builds the config from a mapping; a key that is no field is an error that names the nearest field."""
        refuse_unknown(values, FIELDS, " is no setting of MultiGPUConfig")
        return cls(**values)

    @classmethod
    def from_yaml(cls, path: str | Path) -> "MultiGPUConfig":
        """Builds the config from a YAML file that holds a mapping of fields."""
        import yaml

        file = Path(path)
        if not file.is_file():
            raise ConfigurationError(
                f"`path={str(path)!r}` is no file. It must be a YAML file of fields, as `num_gpus: 2`. Without one, "
                "`MultiGPUConfig()` reads them from the environment."
            )
        values = yaml.safe_load(file.read_text()) or {}
        if not isinstance(values, dict):
            raise ConfigurationError(
                f"`path={str(path)!r}` must hold a mapping of fields, got a {type(values).__name__}."
            )
        return cls.from_dict(values)

    @classmethod
    def from_env(cls) -> "MultiGPUConfig":
        """Builds the config from `UNSLOTH_ACCEL_<FIELD>`; one that nothing reads is an error."""
        return cls()

    def to_dict(self) -> dict[str, Any]:
        """The fields that are set."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def to_plugin(self) -> UnslothAcceleratorPlugin:
        """The plugin of the trainers; what is not set here, the plugin reads from the environment."""
        plans: dict[bool | None, Literal["auto", "keep"] | None] = {True: "auto", False: "keep", None: None}
        return UnslothAcceleratorPlugin(
            find_unused_parameters=self.find_unused_parameters, plan=plans[self.enable_memory_optimization]
        )

    @property
    def launch_config(self) -> str:
        """The short name of the shipped config that `launch_ddp_training` uses."""
        return "cpu_gloo" if self.ddp_backend == "gloo" else gpu_config()

    def _positive(self, name: str) -> int | None:
        source, value = read_field(self, name)
        if value is None:
            return None
        if source != name and str(value).isdecimal():
            value = int(str(value))
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigurationError(f"`{source}` must be a positive integer, got {value!r}.")
        return value


FIELDS = tuple(field.name for field in fields(MultiGPUConfig))
