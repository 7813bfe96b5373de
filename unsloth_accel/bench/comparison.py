"""What a comparison consists of."""

from dataclasses import dataclass
from typing import Literal

from ..errors import ConfigurationError
from .contenders import CONTENDERS
from .workload import Workload


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One model, several workloads, several contenders.

    Args:
        model (`str`): The folder of a model and its tokenizer.
        finetuning (`str`, *optional*, defaults to `"lora"`): `"lora"`, `"qlora"` or `"full"`.
        lora_rank (`int`, *optional*, defaults to 16): The rank of the adapters, on all linear layers.
        works (`tuple[Workload, ...]`): The rows; each is a table of its own.
        contenders (`tuple[str, ...]`): Keys of `CONTENDERS`.
        rounds (`int`, *optional*, defaults to 3): How often each trains each workload, from the same weights.
        warmup (`int`, *optional*, defaults to 4): Optimizer steps of a run before the clock starts.
        steps (`int`, *optional*, defaults to 12): Optimizer steps of a run that are timed.
        tuning (`int`, *optional*, defaults to 40): Optimizer steps of the run in which `auto` finds its plan.
        sequence (`int`, *optional*, defaults to 2048): The most tokens of a row.
        card_gib (`float`, *optional*): What each rank may allocate, as if its card had no more. `None`: all of it.

    Raises:
        ConfigurationError: If there are no rounds, no steps of a kind or no memory, a contender cannot train a
            workload, or only some of the workloads have images.
    """

    model: str
    finetuning: Literal["lora", "qlora", "full"] = "lora"
    lora_rank: int = 16
    works: tuple[Workload, ...]
    contenders: tuple[str, ...]
    rounds: int = 3
    warmup: int = 4
    steps: int = 12
    tuning: int = 40
    sequence: int = 2048
    card_gib: float | None = None

    def __post_init__(self) -> None:
        for name in ("rounds", "warmup", "steps", "tuning"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"`{name}` must be 1 or more, got {getattr(self, name)}.")
        if self.card_gib is not None and self.card_gib <= 0:
            raise ConfigurationError(f"`card_gib` must be more than 0, got {self.card_gib}.")
        if "rebalance" in self.contenders and any(work.batching == "packed" for work in self.works):
            raise ConfigurationError("`contenders` has 'rebalance', which would shuffle packed rows into other steps.")
        if self.has_images:
            self._check_images()

    @property
    def has_images(self) -> bool:
        """Whether the model sees: `FastVisionModel` loads it, with its processor."""
        return any(work.has_images for work in self.works)

    def _check_images(self) -> None:
        without = [str(work) for work in self.works if not work.has_images]
        if without:
            raise ConfigurationError(
                f"`works` has rows with images and, in {without[0]!r}, rows without. Each kind is loaded in another "
                "way: compare them in two calls."
            )
        for name in self.contenders:
            if name == "rebalance" or (name in CONTENDERS and CONTENDERS[name].library != "unsloth"):
                raise ConfigurationError(
                    f"`contenders` has {name!r}, which does not train rows with images. Leave it out, or compare "
                    "rows of text."
                )
