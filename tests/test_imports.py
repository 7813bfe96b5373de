"""The door to Unsloth: what must be installed, in which order it is imported, and on how many GPUs."""

import configparser
import importlib
import subprocess
import sys
import types
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from harness import ROOT, launch
from unsloth_accel import VersionError
from unsloth_accel.imports import FLOORS, check_versions, load_unsloth


CHECK = """
import sys
sys.path.insert(0, sys.argv[1])
from unsloth_accel import VersionError
from unsloth_accel.imports import check_versions, load_unsloth
for function in (check_versions, load_unsloth):
    try:
        function()
    except VersionError as error:
        print(error)
    else:
        print("fine" if function is check_versions else "loaded")
assert not {"torch", "trl", "unsloth"} & set(sys.modules), "checked before anything heavy is imported"
"""


def install(folder: Path, **versions: str) -> None:
    """Real, if empty, distributions; on the path they come before those of the environment."""
    for name, version in versions.items():
        info = folder / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def complaint(folder: Path) -> str:
    """What `check_versions` says in a new process where `folder` comes first; `load_unsloth` must say the same."""
    command = [sys.executable, "-c", CHECK, str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    checked, loaded = done.stdout.splitlines()
    assert checked == loaded
    return checked


def floors_of_setup_cfg() -> dict[str, str]:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    lines = parser["options"]["install_requires"] + parser["options.extras_require"]["gpu"]
    requirements = map(Requirement, filter(None, lines.splitlines()))
    return {requirement.name: str(requirement.specifier) for requirement in requirements}


def test_the_floors_are_those_of_setup_cfg() -> None:
    declared = floors_of_setup_cfg()
    assert {package: declared.get(package) for package in FLOORS} == {p: f">={floor}" for p, floor in FLOORS.items()}


def test_every_fault_is_named_with_the_one_command_that_mends_all(tmp_path: Path) -> None:
    install(tmp_path, trl="1.14.3", peft="0.9", torch="2.10.0+cu130")
    message = complaint(tmp_path)
    assert "trl is 1.14.3, needs >= 1.15" in message
    assert "peft is 0.9, needs >= 0.21" in message, "versions are compared as numbers, not as text"
    assert "torch is 2.10.0+cu130, needs >= 2.11" in message
    assert message.endswith("Run: pip install --upgrade 'torch>=2.11' 'trl>=1.15' 'peft>=0.21'")


def test_versions_are_checked_also_where_the_script_imported_unsloth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, trl="1.14.3")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    monkeypatch.setitem(sys.modules, "unsloth", types.ModuleType("unsloth"))
    with pytest.raises(VersionError, match=r"trl is 1\.14\.3, needs >= 1\.15"):
        load_unsloth()


def test_a_missing_package_is_a_fault(tmp_path: Path) -> None:
    """An environment of its own: nothing but what is made here, and `packaging`, which does the comparing."""
    import packaging

    (tmp_path / "packaging").symlink_to(Path(packaging.__file__).parent)
    install(tmp_path, **{package: floor for package, floor in FLOORS.items() if package != "unsloth"})
    code = f"import sys; sys.path[:] = [p for p in sys.path if 'site-packages' not in p]\n{CHECK}"
    command = [sys.executable, "-S", "-c", code, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    message = done.stdout.splitlines()[0]
    assert "unsloth is not installed, needs >= 2026.10.9." in message
    assert message.endswith("pip install --upgrade 'unsloth>=2026.10.9'")


@pytest.mark.parametrize("version", ["2.11", "2.11.0+cu130", "2.11.0rc1", "2.12.0.dev20260901", "3.0"])
def test_builds_of_a_version_that_is_new_enough_pass(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, **(FLOORS | {"torch": version}))
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    check_versions()


@pytest.mark.gpu
def test_more_ranks_than_gpus_are_refused_before_a_gpu_is_touched() -> None:
    import torch

    surplus = torch.cuda.device_count() + 1
    worker = ROOT / "tests" / "workers" / "surplus_rank.py"
    done = launch(worker, num_processes=surplus, config="ddp", timeout=120, expect_failure=True)
    assert f"ConfigurationError: `--num_processes` started {surplus} ranks on this machine" in done.stderr
    assert f"it has {surplus - 1} visible GPUs" in done.stderr
    assert set(done.stdout.split("\n")) - {""} == {"no GPU touched"}
