"""What it means that a run follows another, for all tests that compare them."""

import pytest


def assert_follows(result, reference, tolerance):
    """Neither run failed, and the loss and the gradient norm of each step agree, relative to the reference.

    Each run is what a worker writes: `logs`, one entry a step, or `error` and its traceback `at`.
    """
    for run in (result, reference):
        assert "error" not in run, run["at"]
    for key in ("loss", "grad_norm"):
        ours, theirs = ([entry[key] for entry in run["logs"]] for run in (result, reference))
        assert ours == pytest.approx(theirs, rel=tolerance), key
