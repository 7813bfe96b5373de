"""Columns of a data set whose values are no numbers or text."""

from typing import Any


def holds_media(feature: Any) -> bool:
    """Whether a column has pictures or sounds, also within lists and structs.

    Args:
        feature (`Any`): A value of `datasets.Features`.
    """
    import datasets

    if isinstance(feature, dict):
        return any(map(holds_media, feature.values()))
    if isinstance(feature, (datasets.Image, datasets.Audio, datasets.Video)):
        return True
    return hasattr(feature, "feature") and holds_media(feature.feature)
