"""What is installed is what the checkout has, and what the pins name is what the floors ask for."""

import configparser
import json
import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

import unsloth_accel
from harness import ROOT
from unsloth_accel.launch.configs import config_names


PIP_INSTALL = ["install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]

REPORT = """
import json, site, sys
site.addsitedir(sys.argv[1])
import unsloth_accel
from unsloth_accel.launch.configs import config_names
print(json.dumps({
    "version": unsloth_accel.__version__,
    "package": unsloth_accel.__file__,
    "configs": {name: str(unsloth_accel.config_path(name)) for name in config_names()},
}))
"""


def pip(*arguments: object) -> None:
    command = [sys.executable, "-m", "pip", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr


def report_of(target: Path) -> dict[str, Any]:
    """What Python finds when `target` is its site-packages, seen from a folder that holds nothing."""
    environment = {**os.environ, "PYTHONPATH": str(target)}
    command = [sys.executable, "-c", REPORT, str(target)]
    done = subprocess.run(command, cwd=target.parent, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.fixture(scope="module")
def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, because building writes into the tree."""
    copy = tmp_path_factory.mktemp("checkout")
    for file in ("setup.cfg", "pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / file, copy)
    for folder in ("unsloth_accel", "accelerate_configs"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


@pytest.fixture(scope="module")
def wheel(checkout: Path) -> Path:
    pip("wheel", *PIP_INSTALL[1:], "--wheel-dir", checkout / "dist", checkout)
    (built,) = (checkout / "dist").glob("*.whl")
    return built


def lines(section: configparser.SectionProxy, key: str) -> list[str]:
    return [line for line in section[key].splitlines() if line]


def requirements(*texts: str) -> dict[str, Requirement]:
    parsed = [Requirement(text.split(" #")[0]) for text in texts if text and not text.startswith("#")]
    return {each.name: each for each in parsed if each.marker is None or each.marker.evaluate()}


def pins(name: str) -> dict[str, Requirement]:
    return requirements(*(ROOT / "requirements" / name).read_text(encoding="utf-8").splitlines())


def test_every_subpackage_is_named(setup_cfg: configparser.ConfigParser) -> None:
    """Otherwise it is missing from the wheel and nowhere else."""
    on_disk = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "unsloth_accel").rglob("__init__.py")}
    assert set(lines(setup_cfg["options"], "packages")) == on_disk | {"unsloth_accel.accelerate_configs"}


def test_the_floors_are_installed(setup_cfg: configparser.ConfigParser) -> None:
    floors = requirements(*lines(setup_cfg["options"], "install_requires"))
    assert {"accelerate", "peft", "torch", "transformers", "trl"} <= set(floors)
    for name, floor in floors.items():
        assert floor.specifier.contains(version(name), prereleases=True), f"{floor}, installed is {version(name)}"


def test_the_pins_are_exact_and_reach_the_floors(setup_cfg: configparser.ConfigParser) -> None:
    pinned = pins("cpu.txt")
    extras = setup_cfg["options.extras_require"]
    floors = requirements(*lines(setup_cfg["options"], "install_requires"), *lines(extras, "dev"))
    assert set(floors) <= set(pinned)
    for name, pin in pinned.items():
        (only,) = pin.specifier
        assert only.operator == "==", pin
        assert name not in floors or floors[name].specifier.contains(only.version), f"{floors[name]}, pinned is {pin}"


def test_the_pinned_unsloth_is_the_floor(setup_cfg: configparser.ConfigParser) -> None:
    floors = requirements(*lines(setup_cfg["options.extras_require"], "gpu"))
    for name, pin in pins("cpu-unsloth.txt").items():
        assert str(pin.specifier).replace("==", ">=") == str(floors[name].specifier)


def test_the_wheel_holds_the_package_and_the_configs_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    configs = {name for name in names if name.startswith("unsloth_accel/accelerate_configs/")}
    assert configs == {f"unsloth_accel/accelerate_configs/{name}.yaml" for name in config_names()}
    assert {"unsloth_accel/py.typed", "unsloth_accel/report/templates/page.html"} <= set(names)
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "unsloth_accel").rglob("*.py")}
    assert modules == {name for name in names if name.endswith(".py")}
    (info,) = {name.split("/")[0] for name in names} - {"unsloth_accel"}
    metadata = zipfile.ZipFile(wheel).read(f"{info}/METADATA").decode()
    assert "Name: unsloth-accel\n" in metadata
    assert "Requires-Python: <3.14,>=3.10\n" in metadata
    assert "Apache-2.0" in metadata
    assert f"{info}/licenses/LICENSE" in names


def test_a_wheel_finds_its_configs_inside(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    pip(*PIP_INSTALL, "--target", target, wheel)
    report = report_of(target)
    folder = target / "unsloth_accel" / "accelerate_configs"
    assert report["package"] == str(target / "unsloth_accel" / "__init__.py")
    assert report["configs"] == {name: str(folder / f"{name}.yaml") for name in config_names()}
    environment = {**os.environ, "PYTHONPATH": str(target)}
    command = [sys.executable, str(target / "bin" / "unsloth-accel"), "config", "path", "ddp"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout == f"{folder / 'ddp.yaml'}\n", done.stderr


def test_an_editable_install_finds_those_of_the_checkout(checkout: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    pip(*PIP_INSTALL, "--target", target, "--editable", checkout)
    report = report_of(target)
    assert report["version"] == unsloth_accel.__version__
    assert report["package"] == str(checkout / "unsloth_accel" / "__init__.py")
    folder = checkout / "accelerate_configs"
    assert report["configs"] == {name: str(folder / f"{name}.yaml") for name in config_names()}
