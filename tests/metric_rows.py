"""Rows for the tests of metrics, and AUC by counting pairs."""

import math
from itertools import product

import numpy as np
from hypothesis import strategies as st

ROWS = st.lists(
    st.tuples(st.integers(0, 1), st.integers(-3, 3), st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=40
)


def columns(rows):
    labels, scores, groups, weights = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
    return labels, scores, groups, weights


def slow_auc(labels, scores, weights):
    positive, negative = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    pairs = sum(weights[i] * weights[j] for i, j in product(positive, negative))
    if pairs == 0:
        return math.nan
    won = sum(
        weights[i] * weights[j] * ((scores[i] > scores[j]) + 0.5 * (scores[i] == scores[j]))
        for i, j in product(positive, negative)
    )
    return won / pairs
