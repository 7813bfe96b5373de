"""What it means that a run follows another, for all tests that compare them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest


Run = dict[str, Any]

# In float32 one operation rounds by up to 2**-24 = 6e-8 of its value. Ranks, micro-batches and other CPUs add the same
# terms in another order: over the 700 tokens of a batch sqrt(700) roundings, 1.6e-6, in each of the 30 matrix products
# between a row and its gradient, and sqrt(30) times 1.6e-6 is 9e-6.
FLOAT32 = 1e-5
# One rounding of bfloat16, in which Unsloth computes on GPUs (float32 models, too, by autocast), is 2**-9 of a value;
# two runs may round apart.
BF16 = 2 * 2**-9


def read_runs(out: Path) -> dict[str, Run]:
    """The results that a worker wrote to `out`, a JSON line each, by case."""
    return {run["case"]: run for run in map(json.loads, out.read_text().splitlines())}


def assert_follows(run: Mapping[str, Any], reference: Mapping[str, Any], tolerance: float = FLOAT32) -> None:
    """Neither run failed, and the loss and the gradient norm of each step agree, relative to the reference.

    Each run is what a worker writes: `logs`, one entry a step, or `error` and its traceback `at`.
    """
    for one in (run, reference):
        assert "error" not in one, f"{one['case']}: {one['at']}"
    for key in ("loss", "grad_norm"):
        ours, theirs = ([entry[key] for entry in one["logs"]] for one in (run, reference))
        assert ours == pytest.approx(theirs, rel=tolerance), f"{run['case']}: {key}"


def assert_trained_alike(run: Mapping[str, Any], reference: Mapping[str, Any]) -> None:
    """The run follows the reference to its weights, and all its ranks have the same."""
    assert_follows(run, reference)
    assert_same_weights(run, reference)
    assert run["between_ranks"] == 0.0


def assert_same_weights(run: Mapping[str, Any], reference: Mapping[str, Any], tolerance: float = FLOAT32) -> None:
    """The weights agree as far as the gradients do, after steps of plain SGD clipped to a norm of 1.

    Each step moves the weights by its learning rate times its gradient, so gradients that differ by `tolerance` of
    their norm move no weight further apart than that share of all steps together. After Adam that does not hold: it
    divides a gradient by its own size, so where that is near zero a rounding becomes a step of up to the learning
    rate, in a weight on which neither loss nor gradient norm depends.
    """
    steps = reference["logs"]
    moved = sum(entry["learning_rate"] * min(entry["grad_norm"], 1.0) for entry in steps)
    for index, (ours, theirs) in enumerate(zip(run["weights"], reference["weights"], strict=True)):
        rounded = len(steps) * 2 * 2**-24 * abs(theirs)  # the sum itself, in each step of either run
        assert abs(ours - theirs) <= tolerance * moved + rounded, f"{run['case']}: weight {index}"
