"""Memory and utilization, which only GPUs have, and how they hang together; real kernels."""

from pathlib import Path

import pytest

from harness import ROOT, launch
from trajectories import read_runs
from unsloth_accel.metrics.peak_flops import peak_flops
from unsloth_accel.metrics.window import METRICS


WORKER = ROOT / "tests" / "workers" / "trajectory.py"
# In bfloat16, of which there is a peak.
RECOMPUTED, KEPT = "kind=qlora,checkpointing=unsloth", "kind=qlora,checkpointing=false"

pytestmark = [pytest.mark.multigpu(gpus=2), pytest.mark.timeout(580)]


def test_hfu_is_mfu_with_padding_and_with_what_is_recomputed(result_folder: Path, tiny_model: Path) -> None:
    import torch

    out = result_folder / "metrics.jsonl"
    as_given = {"UNSLOTH_ACCEL_PLAN": "keep", "UNSLOTH_DATASET_NUM_PROC": "1"}
    launch(WORKER, tiny_model, out, RECOMPUTED, KEPT, num_processes=None, config="ddp_2gpu", env=as_given, timeout=560)
    runs = read_runs(out)
    for case in (RECOMPUTED, KEPT):
        assert "error" not in runs[case], runs[case]["at"]
    if peak_flops(torch.cuda.get_device_name(), bf16=True) is None:
        assert "mfu" not in runs[KEPT]["metrics"][-2]
        return
    for case in (RECOMPUTED, KEPT):
        *steps, summary = runs[case]["metrics"]
        assert summary == {}
        for step in steps[1:]:
            assert step.keys() == set(METRICS)
            assert step["peak_memory_gib"] > 0
            assert 0 < step["mfu"] < 1
            with_padding = step["mfu"] / (1 - step["padding_share"])
            if case == KEPT:
                assert step["hfu"] == pytest.approx(with_padding)
            else:
                assert with_padding * 1.05 < step["hfu"] <= with_padding * 1.5
