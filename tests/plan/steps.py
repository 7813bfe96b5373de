"""Lengths of rows to plan with, drawn and written down."""

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st

from unsloth_accel.plan.cost import RowCost
from unsloth_accel.plan.lengths import RowLengths


# That of a 3b Llama, none, and that of a tiny model, by which attention is nearly all there is.
QUADRATIC_TERMS = (112, 0, 1 << 15)

row_costs = st.builds(RowCost, quadratic=st.sampled_from(QUADRATIC_TERMS), padded=st.booleans())
packed_costs = st.builds(RowCost, quadratic=st.sampled_from(QUADRATIC_TERMS))
padded_costs = st.builds(RowCost, quadratic=st.sampled_from(QUADRATIC_TERMS), padded=st.just(True))
# Mostly short rows with a few long ones, rows that are alike, and anything.
tokens = st.one_of(st.integers(1, 64), st.sampled_from([1, 2048]), st.integers(0, 1 << 17))


def documents(tokens: Sequence[int]) -> RowLengths:
    """Rows that are one document each."""
    return RowLengths.of_documents(np.array(tokens, np.int64))
