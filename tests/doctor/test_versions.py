"""Versions against floors and ceilings, with real, if empty, distributions."""

import importlib
import sys
from pathlib import Path

import pytest

from packages import install
from unsloth_accel.doctor.finding import Finding
from unsloth_accel.doctor.versions import check_python, check_versions
from unsloth_accel.imports import FLOORS


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The first place where packages are looked for."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def findings() -> dict[str, Finding]:
    importlib.invalidate_caches()
    return {finding.check: finding for finding in check_versions()}


def test_what_is_installed_here_is_as_it_should_be() -> None:
    assert findings().keys() == FLOORS.keys()
    assert {finding.verdict for finding in findings().values()} == {"PASS"}
    assert [finding.verdict for finding in check_python()] == ["PASS"]


def test_below_the_floor_is_a_failure_with_the_command_that_mends_it(folder: Path) -> None:
    install(folder, trl="1.14.3")
    found = findings()["trl"]
    assert (found.verdict, found.message) == ("FAIL", "1.14.3, needs >= 1.15")
    assert found.mend == "pip install --upgrade 'trl>=1.15,<=1.15.0'", "not to a version that Unsloth does not allow"


def test_above_what_unsloth_allows_is_a_warning(folder: Path) -> None:
    install(folder, transformers="5.18.0")
    found = findings()["transformers"]
    assert found.verdict == "WARN"
    assert "5.18.0, but unsloth 2026.10.9 allows only" in found.message
    assert "<=5.17.0" in found.message
    assert found.mend == "pip install --upgrade 'transformers>=5.17,<=5.17.0'"


def test_what_an_extra_of_unsloth_wants_is_no_ceiling(folder: Path) -> None:
    install(folder, requires=('torch<1; extra == "old"', "accelerate<1.15"), unsloth="2026.10.9")
    found = findings()
    assert found["torch"].verdict == "PASS"
    assert found["accelerate"].verdict == "WARN"


def test_a_missing_package_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FLOORS, "no-such-package", "1.0")
    found = findings()["no-such-package"]
    assert (found.verdict, found.message) == ("FAIL", "not installed, needs >= 1.0")
    assert found.mend == "pip install --upgrade 'no-such-package>=1.0'"


def test_nothing_is_imported_to_compare_versions() -> None:
    import subprocess

    code = "import sys; from unsloth_accel.doctor.versions import check_versions; list(check_versions())"
    code += "; sys.exit(bool({'torch', 'trl', 'unsloth'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
