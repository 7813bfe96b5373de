"""What `import unsloth_accel` gives, and what it must not do."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import unsloth_accel


PUBLIC_NAMES = [
    "ConfigurationError",
    "GradientSyncError",
    "LaunchError",
    "MultiGPUConfig",
    "MultiGPUHandle",
    "MultiGPUStatus",
    "PeerError",
    "PlanCandidate",
    "RankReport",
    "StepPlan",
    "StepPlanRecord",
    "UnslothAccelError",
    "UnslothAcceleratedSFTTrainer",
    "UnslothAcceleratedTrainerMixin",
    "UnslothAccelerator",
    "UnslothAcceleratorPlugin",
    "VersionError",
    "accelerated",
    "config_path",
    "disable_multi_gpu",
    "enable_multi_gpu",
    "get_multi_gpu_status",
    "launch_ddp_training",
    "run_once",
]

HEAVY = ["accelerate", "datasets", "numpy", "peft", "torch", "transformers", "trl", "unsloth", "unsloth_zoo"]

IMPORT_REPORT = """
import json, os, sys, threading
before = dict(os.environ)
import unsloth_accel
dir(unsloth_accel)
unsloth_accel.config_path("ddp")
print(json.dumps({
    "loaded": sorted({name.split(".")[0] for name in sys.modules}),
    "environment changed": dict(os.environ) != before,
    "threads": threading.active_count(),
}))
"""

PUBLIC_NAMES_REPORT = """
import unsloth_accel
for name in unsloth_accel.__all__:
    assert getattr(unsloth_accel, name).__name__ == name, name
"""


def run(code: str) -> str:
    root = Path(unsloth_accel.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_public_names_are_these() -> None:
    assert unsloth_accel.__all__ == PUBLIC_NAMES
    assert set(unsloth_accel._MODULES) == set(PUBLIC_NAMES)
    assert set(PUBLIC_NAMES) <= set(dir(unsloth_accel))


def test_the_import_loads_nothing_heavy_and_changes_nothing() -> None:
    report = json.loads(run(IMPORT_REPORT))
    assert "unsloth_accel" in report["loaded"]
    assert not set(HEAVY) & set(report["loaded"])
    assert report["environment changed"] is False
    assert report["threads"] == 1


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'unsloth_accel' has no attribute 'UnslothTrainer'"):
        unsloth_accel.UnslothTrainer  # noqa: B018


@pytest.mark.cpu
def test_every_public_name_is_there() -> None:
    run(PUBLIC_NAMES_REPORT)
