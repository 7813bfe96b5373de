"""Rows with and without an image, as Unsloth's vision notebooks have them."""

from collections.abc import Sequence
from typing import Any


def conversations(texts: Sequence[str], sides: Sequence[int | None]) -> list[dict[str, Any]]:
    """A question, with the image, and the text as its answer.

    Args:
        texts (`Sequence[str]`): Of each row.
        sides (`Sequence[int | None]`): How high and wide each row's image is in pixels; None: it has none.

    Returns:
        `list[dict]`: A row each. Images of a size are one in memory: what they show changes no time.
    """
    from PIL import Image

    gradient = Image.radial_gradient("L").convert("RGB")
    images = {side: gradient.resize((side, side)) for side in set(sides) if side is not None}
    return [_row(text, None if side is None else images[side]) for text, side in zip(texts, sides, strict=True)]


def _row(text: str, image: Any) -> dict[str, Any]:
    question: list[dict[str, Any]] = [{"type": "text", "text": "the model of"}]
    if image is not None:
        question.insert(0, {"type": "image", "image": image})
    answer = [{"type": "text", "text": text}]
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
