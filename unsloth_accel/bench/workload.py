"""What is trained in a comparison: which rows, how many, and how they are put into batches."""

import random
import re
from dataclasses import dataclass
from typing import Literal, cast, get_args

from ..errors import ConfigurationError
from .random_llama import WORDS


Lengths = Literal["fixed", "lognormal", "pareto"]
Batching = Literal["padding-free", "packed", "padded", "images"]

SHORTEST = 8
# Pixels: 64, 144 and 324 tokens of Qwen2.5-VL. What is longer than 512, Unsloth's collator makes that long.
IMAGE_SIDES = 224, 336, 504


@dataclass(frozen=True)
class Workload:
    """The rows of an optimizer step.

    Args:
        rows (`int`): Rows of a rank's micro-batch.
        accumulation (`int`): Micro-batches of a rank and step.
        lengths (`str`): `"fixed"` (as long as the sequence), `"lognormal"` (median 330 tokens) or `"pareto"`.
        batching (`str`): `"padding-free"`, `"packed"`, `"padded"` or `"images"` (padded; half of the rows, drawn, have
            an image besides their text).
    """

    rows: int
    accumulation: int
    lengths: Lengths
    batching: Batching = "padding-free"

    @classmethod
    def parse(cls, text: str) -> "Workload":
        """Reads `ROWSxACCUMULATION:LENGTHS[:BATCHING]`, as in `2x4:lognormal:padded`.

        Args:
            text (`str`): What to read.

        Returns:
            `Workload`: What it says.

        Raises:
            ConfigurationError: If it is not of that form.
        """
        found = re.fullmatch(
            rf"([1-9]\d*)x([1-9]\d*):({'|'.join(get_args(Lengths))})(?::({'|'.join(get_args(Batching))}))?", text
        )
        if found is None:
            raise ConfigurationError(
                f"`work` must be ROWSxACCUMULATION:LENGTHS[:BATCHING], got {text!r}. LENGTHS is one of "
                f"{', '.join(get_args(Lengths))}; BATCHING one of {', '.join(get_args(Batching))}."
            )
        rows, accumulation, lengths, batching = found.groups(default="padding-free")
        return cls(int(rows), int(accumulation), cast(Lengths, lengths), cast(Batching, batching))

    def __str__(self) -> str:
        return f"{self.rows}x{self.accumulation}:{self.lengths}:{self.batching}"

    @property
    def has_images(self) -> bool:
        """Whether rows are conversations, some of them with an image."""
        return self.batching == "images"

    def texts(self, steps: int, world_size: int, sequence: int) -> list[str]:
        """The documents, in the order in which they are trained; the same in every process.

        Args:
            steps (`int`): Optimizer steps of a run.
            world_size (`int`): How many ranks share the rows of a step.
            sequence (`int`): The most tokens of a row.

        Returns:
            `list[str]`: One document a row; where rows are packed, as many as fill the rows.
        """
        draw = random.Random(1)
        count = steps * self.rows * self.accumulation * world_size
        documents: list[str] = []
        # A tenth more than what fills the packed rows, because packing leaves gaps.
        tokens = 1.1 * count * sequence
        while len(documents) < count if self.batching != "packed" else tokens > 0:
            length = self._length(draw, sequence)
            tokens -= min(length, sequence)
            documents.append(" ".join(draw.choices(WORDS, k=length)))
        return documents

    @staticmethod
    def image_sides(rows: int) -> list[int | None]:
        """How high and wide the image of each row is, in pixels; None for the half that is text only.

        Drawn, and not in turns, so that in a micro-batch one rank has more images than another, or all of them. The
        same in every process.

        Args:
            rows (`int`): Rows of a run.
        """
        draw = random.Random(2)
        with_image = set(draw.sample(range(rows), rows // 2))
        return [draw.choice(IMAGE_SIDES) if row in with_image else None for row in range(rows)]

    def _length(self, draw: random.Random, sequence: int) -> int:
        """In words, most of which are one token."""
        if self.lengths == "fixed":
            return sequence + 8
        drawn = draw.lognormvariate(5.8, 0.9) if self.lengths == "lognormal" else 64 * draw.paretovariate(1.2)
        return max(SHORTEST, min(sequence, int(drawn)))
