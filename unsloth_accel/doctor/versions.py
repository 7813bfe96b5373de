"""The versions that are installed, against our floors and what Unsloth allows."""

import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from typing import TYPE_CHECKING

from .finding import Finding


if TYPE_CHECKING:
    from packaging.specifiers import SpecifierSet

# setup.cfg has the same.
PYTHON_FROM, PYTHON_BELOW = (3, 10), (3, 14)


def check_python() -> Iterator[Finding]:
    """Python itself."""
    running = sys.version.split()[0]
    if PYTHON_FROM <= sys.version_info[:2] < PYTHON_BELOW:
        yield Finding("python", "PASS", f"{running}, {sys.executable}")
    else:
        yield Finding("python", "WARN", f"{running}; tests run on 3.10 to 3.13", "python3.12 -m venv .venv")


def check_versions() -> Iterator[Finding]:
    """Each package that must be there. Nothing is imported for it."""
    # Here, so that a missing `packaging` is a finding and not the end of the doctor.
    from ..imports import FLOORS

    for package, floor in FLOORS.items():
        yield _check(package, floor)


def _check(package: str, floor: str) -> Finding:
    from packaging.version import Version

    allowed = allowed_by_unsloth(package)
    wanted = ",".join(filter(None, [f">={floor}", _upper_bounds(allowed)]))
    mend = f"pip install --upgrade '{package}{wanted}'"
    try:
        found = version(package)
    except PackageNotFoundError:
        return Finding(package, "FAIL", f"not installed, needs >= {floor}", mend)
    if Version(found).release < Version(floor).release:
        return Finding(package, "FAIL", f"{found}, needs >= {floor}", mend)
    if not allowed.contains(found, prereleases=True):
        return Finding(package, "WARN", f"{found}, but unsloth {version('unsloth')} allows only {allowed}", mend)
    return Finding(package, "PASS", f"{found}, needs {wanted}")


def allowed_by_unsloth(package: str) -> "SpecifierSet":
    """What the installed `unsloth` and `unsloth_zoo` say of a package in their metadata, together."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet
    from packaging.utils import canonicalize_name

    allowed = SpecifierSet()
    for owner in ("unsloth", "unsloth_zoo"):
        for requirement in map(Requirement, _requirements(owner)):
            applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if applies and canonicalize_name(requirement.name) == canonicalize_name(package):
                allowed &= requirement.specifier
    return allowed


def _requirements(package: str) -> list[str]:
    try:
        return requires(package) or []
    except PackageNotFoundError:
        return []


def _upper_bounds(allowed: "SpecifierSet") -> str:
    return ",".join(sorted({str(one) for one in allowed if one.operator in ("<", "<=", "==")}))
