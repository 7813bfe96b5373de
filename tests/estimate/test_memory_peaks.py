"""The benchmark that measures peaks, as far as a CPU can run it."""

import json
import runpy
import subprocess
import sys
from typing import Any

import pytest
import torch

from harness import ON_CPU, ROOT
from unsloth_accel.plan.decoder import DecoderShape


SCRIPT = ROOT / "benchmarks" / "memory_peaks.py"
RESULTS = ROOT / "benchmarks" / "results"


@pytest.fixture(scope="module")
def script(model_libraries: None) -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


def test_every_case_has_a_model_that_is_estimated(script: dict[str, Any]) -> None:
    from transformers import AutoModelForCausalLM

    for name, case in script["CASES"].items():
        config = script["model_config"](case.size)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        shape = DecoderShape.from_config(config)
        matrices = sum(parameter.numel() for parameter in model.parameters() if parameter.dim() > 1)
        assert matrices == shape.linear_weights + (1 if shape.tied else 2) * shape.head_weights, name
        assert script["estimated"](case, 8192, 0) < script["estimated"](case, 8192, shape.layers)


MEASURED = [json.loads(line) for line in (RESULTS / "memory_peaks_h100.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("run", MEASURED, ids=lambda run: f"{run['case']}-{run['layers_kept']}")
def test_the_estimate_is_within_a_tenth_of_what_was_measured(run: dict[str, Any], script: dict[str, Any]) -> None:
    estimated = script["estimated"](script["CASES"][run["case"]], run["tokens"], run["layers_kept"])
    assert estimated == pytest.approx(run["measured_gib"], rel=0.1)


@pytest.mark.cpu
def test_a_case_is_trained_in_a_process_of_its_own() -> None:
    import os

    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--cases", "tiny"],
        env=os.environ | ON_CPU | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    lines = [line.removeprefix("RESULT ") for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    recomputed, kept = map(json.loads, lines)
    assert done.returncode == 0, done.stderr
    assert (recomputed["layers_kept"], kept["layers_kept"]) == (0, 2)
    assert recomputed["tokens"] == kept["tokens"] == 2 * 64, "full rows"
    assert recomputed["batches"] == kept["batches"] == 3
    assert recomputed["measured_gib"] is None
