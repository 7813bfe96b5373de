"""How attention is computed here, and which of our fixes this installation needs."""

from collections.abc import Iterator

from .finding import Finding
from .survey import NotAnswered, Survey, unanswered


def check_attention(survey: Survey) -> Iterator[Finding]:
    """One attention launch for a packed row, or one for each document."""
    try:
        found, cards = survey.answer("attention"), survey.answer("gpus")
    except NotAnswered as reason:
        yield unanswered("attention", reason)
        return
    if not cards:
        yield Finding("attention", "SKIP", "no GPU")
    elif found["one_by_one"]:
        message = f"{found['reason']}; on several ranks the fix packed_attention makes that one launch, on one not"
        yield Finding("attention", "WARN", message, "pip install --upgrade 'torch>=2.12', or pip install flash-attn")
    elif min(card["capability"] for card in cards) < [8, 0]:
        yield Finding("attention", "WARN", f"{found['reason']}; xformers runs from 7.0 on", "pip install xformers")
    else:
        yield Finding("attention", "PASS", found["reason"])


def check_fixes(survey: Survey) -> Iterator[Finding]:
    """Every fix by name. One that is needed is no fault: it is applied where there are several ranks."""
    try:
        fixes = survey.answer("fixes")
    except NotAnswered as reason:
        yield unanswered("fixes", reason)
        return
    for fix in fixes:
        state = "needed, and applied on several ranks" if fix["needed"] else "not needed"
        yield Finding(f"fix {fix['name']}", "PASS", f"{state}: {fix['reason']}")
