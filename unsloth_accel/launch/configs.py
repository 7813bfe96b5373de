"""Finds the Accelerate configs that come with the package by their short names."""

from difflib import get_close_matches
from pathlib import Path

from ..errors import ConfigurationError


def config_folder() -> Path:
    """The folder of the shipped configs.

    A wheel carries it inside the package. In a checkout, and so in an editable install, it lies at the top, where
    people look for it; `importlib.resources` finds only the first.
    """
    package = Path(__file__).resolve().parents[1]
    in_wheel = package / "accelerate_configs"
    return in_wheel if in_wheel.is_dir() else package.parent / "accelerate_configs"


def config_names() -> list[str]:
    """The short names of the shipped configs, sorted."""
    return sorted(path.stem for path in config_folder().glob("*.yaml"))


def config_path(name: str) -> Path:
    """The file to give to `accelerate launch --config_file`.

    Args:
        name (`str`): An existing file, which is returned as it is, or the short name of a shipped config.

    Returns:
        `pathlib.Path`: The absolute path of the file.

    Raises:
        ConfigurationError: If `name` is neither.

    Example:

    ```python
    >>> from unsloth_accel import config_path

    >>> config_path("ddp").name
    'ddp.yaml'
    ```
    """
    file = Path(name)
    if file.is_file():
        return file.resolve()
    names = config_names()
    if name in names:
        return config_folder() / f"{name}.yaml"
    nearest = get_close_matches(name, names, n=1)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    raise ConfigurationError(f"`name` must be an existing file or one of {', '.join(names)}; got {name!r}.{hint}")
