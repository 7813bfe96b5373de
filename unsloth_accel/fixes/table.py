"""The page docs/fixes.md, made from the registry: `python -m unsloth_accel.fixes.table > docs/fixes.md`."""

import sys

from .fix import Fix
from .registry import FIXES


HEAD = """\
# Compatibility fixes

What plain Unsloth does on several ranks that users trip over, and what this package does about it. `import
unsloth_accel` patches nothing. A fix is applied only with more than one rank and only where its probe finds it needed:
what concerns restarted ranks and the loading of a model when `UnslothAcceleratedSFTTrainer` is imported or an
`UnslothAccelerator` made, what concerns the process by `enable_multi_gpu()` or a trainer, what concerns a model by its
trainer or by `accelerator.prepare`. `disable_multi_gpu()` and the trainer's `applied_fixes.undo()` take them back.
`tokenize_once` and `frozen_weights` patch nothing: they are in place while there are data, or a model, that were
prepared that way.

`unsloth-accel doctor` tells which of them this installation needs, `get_multi_gpu_status()` which are in place.

This page is generated: `python -m unsloth_accel.fixes.table > docs/fixes.md`. A test compares it with the registry.

| fix | without it | with it | ends with |
|---|---|---|---|
"""


def as_markdown() -> str:
    """The whole page."""
    return HEAD + "".join(_row(fix) for fix in FIXES)


def _row(fix: Fix) -> str:
    symptom, remedy = (text.replace("|", "\\|") for text in (fix.symptom, fix.remedy))
    return f"| `{fix.name}` | {symptom} ([where]({fix.upstream})) | {remedy} | {fix.until or 'no release yet'} |\n"


if __name__ == "__main__":
    sys.stdout.write(as_markdown())
