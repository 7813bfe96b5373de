"""`unsloth-accel doctor` as a user starts it, and what docs/doctor.md says of it."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from harness import ON_CPU, ROOT
from packages import plant
from unsloth_accel.fixes import FIXES
from unsloth_accel.imports import FLOORS


PAGE = (ROOT / "docs" / "doctor.md").read_text()

THIRD_PARTY = [
    "accelerate",
    "cloudpickle",
    "datasets",
    "matplotlib",
    "numpy",
    "packaging",
    "peft",
    "psutil",
    "pyarrow",
    "torch",
    "transformers",
    "trl",
    "unsloth",
    "unsloth_zoo",
    "yaml",
]


def doctor(folder: Path, *arguments: str, path: Path | None = None) -> "subprocess.CompletedProcess[str]":
    """In an empty folder, without a GPU."""
    env = os.environ | {**ON_CPU, "HF_HOME": str(folder / "home")}
    if path is not None:
        env["PYTHONPATH"] = str(path)
    command = [sys.executable, "-c", "import sys; from unsloth_accel.cli.main import main; sys.exit(main())", "doctor"]
    work = folder / "work"
    work.mkdir(exist_ok=True)
    return subprocess.run(
        [*command, *arguments], cwd=work, env=env, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.gloo
def test_doctor_on_a_machine_without_gpus(tmp_path: Path) -> None:
    plain, with_all = re.findall(r"```bash\n(.*)\n```", PAGE)
    assert plain == "unsloth-accel doctor"
    done = doctor(tmp_path, *shlex.split(with_all.removeprefix(plain)))
    said = json.loads(done.stdout)
    found = {finding["check"]: finding for finding in said["findings"]}
    assert done.returncode == 0, [finding for finding in said["findings"] if finding["verdict"] == "FAIL"]
    assert said["healthy"] is True
    for check in (*FLOORS, "imports", "compiled cache", "launch config", "all-reduce"):
        assert found[check]["verdict"] == "PASS", found[check]
    for fix in FIXES:
        assert found[f"fix {fix.name}"]["verdict"] == "PASS"
    assert found["fix save_once"]["message"].startswith("needed, and applied on several ranks: every rank")
    assert found["fix device_map"]["message"] == "not needed: Unsloth's CPU backend takes no device map"
    assert found["gpus"]["verdict"] == found["attention"]["verdict"] == "SKIP"
    assert "2 ranks through `accelerate launch` and gloo" in found["all-reduce"]["message"]
    assert list((tmp_path / "work").iterdir()) == [], "it leaves nothing behind"
    for named in re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE):
        for check in re.findall(r"`([\w-]+(?: \w+)?)(?: \.\.\.)?`", named):
            assert any(name.startswith(check.removesuffix(" 0")) for name in found), f"the page names {check}"


@pytest.mark.cpu
def test_doctor_on_a_broken_installation(tmp_path: Path) -> None:
    broken = plant(tmp_path / "broken", trl="raise RuntimeError('half of it is missing')")
    done = doctor(tmp_path, path=broken)
    assert done.returncode == 1
    assert "FAIL  import trl             RuntimeError: half of it is missing\n" in done.stdout
    assert "-> pip install --force-reinstall --no-deps trl" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_doctor_where_no_package_can_be_imported(tmp_path: Path) -> None:
    broken = plant(tmp_path / "broken", **{name: f"raise OSError('{name} is broken')" for name in THIRD_PARTY})
    done = doctor(tmp_path, path=broken)
    assert done.returncode == 1
    assert "FAIL  versions               OSError: packaging is broken\n" in done.stdout
    assert "FAIL  imports " in done.stdout
    assert "SKIP  gpus " in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.cpu
def test_doctor_where_nothing_is_installed(tmp_path: Path) -> None:
    """An environment of its own: this package, and of the others not even the metadata."""
    code = f"import sys; sys.path[:] = [p for p in sys.path if 'site-packages' not in p] + ['{ROOT}']; "
    code += "from unsloth_accel.cli.main import main; sys.exit(main(['doctor']))"
    command = [sys.executable, "-S", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "-> pip install packaging" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
