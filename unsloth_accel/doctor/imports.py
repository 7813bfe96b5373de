"""Whether what is installed can be imported."""

import re
from collections.abc import Iterator

from .finding import Finding
from .survey import Survey


def check_imports(survey: Survey) -> Iterator[Finding]:
    """Each package by itself, so that the one that is broken is named and not only Unsloth, which needs all."""
    broken = {question: said for question, said in survey.errors.items() if question.startswith("import ")}
    for question, said in broken.items():
        yield Finding(question, "FAIL", said, _mend(question.removeprefix("import "), said))
    if survey.end and not broken:
        yield Finding("imports", "FAIL", survey.end, _mend("unsloth-accel", survey.end))
    elif not broken:
        imported = [question.removeprefix("import ") for question in survey.answers if question.startswith("import ")]
        yield Finding("imports", "PASS", f"{', '.join(imported)} can be imported")


def _mend(package: str, said: str) -> str:
    """Installing what is missing, or the package anew, without touching what it needs."""
    missing = re.findall(r"No module named '(\w+)", said)
    if missing:
        return f"pip install {missing[-1]}"
    return f"pip install --force-reinstall --no-deps {package}; if that does not help: a fresh environment"
