"""`accelerate launch -m unsloth_accel SCRIPT [ARGUMENT ...]`: `enable_multi_gpu()`, then the unchanged script.

The settings of `enable_multi_gpu` come from the environment, `UNSLOTH_ACCEL_<FIELD>`.
"""

import runpy
import sys
from pathlib import Path

from .drop_in.config import MultiGPUConfig
from .errors import ConfigurationError


def main(arguments: list[str]) -> None:
    """Runs `arguments[0]` as `python` would, with the rest as its arguments."""
    if not arguments:
        raise ConfigurationError("`SCRIPT` is missing. Run: accelerate launch -m unsloth_accel SCRIPT [ARGUMENT ...]")
    script = Path(arguments[0])
    if not script.is_file():
        raise ConfigurationError(f"`SCRIPT` must be an existing Python file, got {arguments[0]!r}.")
    settings = MultiGPUConfig.from_env()

    from .drop_in.enable import enable_multi_gpu

    enable_multi_gpu(**settings.to_dict())
    sys.argv = list(arguments)
    sys.path[0] = str(script.resolve().parent)
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
