"""Tokenising on every rank, which `data/prepare_once.py` avoids."""

import sys
from typing import Any

from .fix import Fix, Verdict


def probe(model: Any) -> Verdict:
    """Every release so far prepares on every rank; some make the ranks wait inside a collective besides."""
    return Verdict(True, "every rank tokenises the whole data set; our trainers prepare through `prepare_once`")


def in_place(model: Any) -> bool:
    """Whether this process holds a data set that was tokenised once. Where none is, its module need not be loaded."""
    sharing = sys.modules.get("unsloth_accel.data.node_shared_dataset")
    return sharing is not None and sharing.is_in_use()


FIX = Fix(
    name="tokenize_once",
    symptom=(
        "On N GPUs the data set is tokenised N times, with up to 8 workers per rank: the machine runs out of memory "
        'or "subprocesses has abruptly died", and where one rank fails the others hang.'
    ),
    remedy="One rank per node tokenises, the others load its file; a failure ends all ranks at once with its error.",
    upstream="https://github.com/unslothai/unsloth-zoo/blob/main/unsloth_zoo/dataset_utils.py",
    until=None,
    probe=probe,
    apply=None,
    in_place=in_place,
)
