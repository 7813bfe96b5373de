"""Tiers, seeds, and the checks that keep one test from changing the next."""

import importlib
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
from filelock import FileLock


pytest.register_assert_rewrite("trajectories")  # so that its assertions show what they compared

TIERS = ("unit", "cpu", "gloo", "long", "notebook", "gpu", "multigpu")

# Set per rank by a launcher, or ours. Other variables are written by the libraries we train with.
OWN_VARIABLES = ("UNSLOTH_ACCEL_", "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_", "CUDA_VISIBLE_")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--draws`: how many random programs, or faults, a test that draws them tries; `make soak` asks for hundreds."""
    parser.addoption("--draws", type=int, default=6, help="how many random draws a test tries (default: 6)")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test without a tier is a unit test. First, so that `-m` sees it."""
    for item in items:
        if not any(item.get_closest_marker(tier) for tier in TIERS):
            item.add_marker("unit")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips what needs more GPUs than there are, with one reason that holds all of it."""
    multigpu = item.get_closest_marker("multigpu")
    needed = multigpu.kwargs.get("gpus", 2) if multigpu else 1 if item.get_closest_marker("gpu") else 0
    if needed and (found := _gpu_count()) < needed:
        pytest.skip(f"needs {needed} CUDA GPU{'s' if needed > 1 else ''}, this machine has {found}")


@cache
def _gpu_count() -> int:
    import torch

    return torch.cuda.device_count()


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random numbers for each test, whatever ran before. Loads nothing that is not loaded."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(autouse=True)
def no_environment_leak(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that leaves an environment variable changed.

    In a unit test that is any variable. Elsewhere it is what decides about ranks: Unsloth, transformers and others
    write dozens at import, and need them for as long as they are loaded.
    """
    before = dict(os.environ)
    yield
    after = dict(os.environ)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    changed.discard("PYTEST_CURRENT_TEST")
    if not request.node.get_closest_marker("unit"):
        # What transformers' TrainingArguments write would change the precision of the next test.
        for name in [name for name in changed if name.startswith("ACCELERATE_")]:
            _restore(name, before)
        changed = {name for name in changed if name.startswith(OWN_VARIABLES)}
    for name in changed:
        _restore(name, before)
    if changed:
        pytest.fail(f"The test leaves environment variables changed: {', '.join(sorted(changed))}")


def _restore(name: str, before: dict[str, str]) -> None:
    if name in before:
        os.environ[name] = before[name]
    else:
        os.environ.pop(name, None)


@pytest.fixture(autouse=True)
def fresh_accelerate_state() -> Iterator[None]:
    """Accelerate keeps its state in singletons; a test starts without what the one before left there."""
    yield
    if "accelerate.state" in sys.modules:
        sys.modules["accelerate.state"].AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def model_libraries() -> None:
    """Imported with the first test that needs them, and not with its module: in other tiers Unsloth comes first.

    Before the environment of a test is compared, because they write to it.
    """
    importlib.import_module("peft")
    importlib.import_module("trl.trainer.sft_trainer")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random Llama in fp32 and its tokenizer; made once, also under xdist."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder = shared / "tiny_model"
    with FileLock(shared / "tiny_model.lock"):
        if not folder.exists():
            script = Path(__file__).with_name("tiny_model.py")
            subprocess.run([sys.executable, str(script), str(folder)], check=True, timeout=120)
    return folder


@pytest.fixture(scope="module")
def result_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a test of GPUs writes its result files; GPU_RESULTS names a folder that keeps them."""
    if "GPU_RESULTS" not in os.environ:
        return tmp_path_factory.mktemp("results")
    folder = Path(os.environ["GPU_RESULTS"]).absolute()
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def full_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system too small for what is written to it; the folder is missing where this user may not mount one."""
    with _mounted(tmp_path_factory.mktemp("disk") / "small", "size=128k") as folder:
        yield folder


@pytest.fixture(scope="module")
def read_only(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that nobody can write to; for root that takes a mount, and where that fails the folder is missing."""
    folder = tmp_path_factory.mktemp("disk") / "read_only"
    if os.getuid() == 0:
        with _mounted(folder, "ro"):
            yield folder
        return
    folder.mkdir(mode=0o555)
    yield folder


@contextmanager
def _mounted(folder: Path, options: str) -> Iterator[Path]:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        folder.rmdir()
        yield folder
        return
    yield folder
    # Lazily: the traceback of a write that failed may still hold the file open.
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
