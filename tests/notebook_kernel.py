"""The notebooks, and the environment in which a kernel runs them."""

import os
from pathlib import Path

from harness import ROOT


NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def environment(tmp_path: Path, model: Path) -> dict[str, str]:
    """What a kernel gets: this checkout, no network, a quiet Unsloth, and a model; without a GPU it makes its own."""
    import torch

    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "HF_HUB_OFFLINE": "1",
        "MODEL": str(model) if torch.cuda.is_available() else "",
        "OMP_NUM_THREADS": "1",
        "UNSLOTH_COMPILE_LOCATION": str(tmp_path / "compiled"),
        "UNSLOTH_DISABLE_STATISTICS": "1",
    }


def plots_of(notebook: Path, folder: Path) -> int:
    """How many plots the notebook shows that has run in `folder`: the report's, and in the third the losses."""
    charts = len(list((folder / "outputs" / "report").glob("*.png")))
    assert charts >= 4, "loss, throughput, tokens and waiting"
    return charts + notebook.stem.startswith("03")
