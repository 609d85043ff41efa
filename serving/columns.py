"""The columns of scores, from a prediction of each task alone: products over all rows, and what is computed from them.

This module needs Python and NumPy only, because portable artifacts score with it.

Letters: N rows.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from serving.formula import SCORE, Formula

CONDITIONAL = ":conditional"
"""Suffix of the column that holds the probability of a task given the one that it comes after."""

VALUES = frozenset({"regression", "ordinal"})
"""The kinds of tasks whose logit is the predicted value itself."""

Values = NDArray[np.float32]


def chains_of(after: Mapping[str, str | None]) -> dict[str, list[str]]:
    """For each task: its name, and those of all tasks without which it does not happen, the nearest first.

    Args:
        after: For each task, the one that it comes after, or ``None``.

    Raises:
        ValueError: They come after each other in a circle.
    """
    found = {}
    for name in after:
        chain = [name]
        while (first := after[chain[-1]]) is not None:
            if first in chain:
                raise ValueError(f"the tasks {', '.join(chain)} come after each other in a circle")
            chain.append(first)
        found[name] = chain
    return found


def columns(
    alone: Mapping[str, Values], chains: Mapping[str, Sequence[str]], *, conditional: bool, score: Formula | None
) -> dict[str, Values]:
    """(N,) values by column.

    The probability of a task is at most that of the task that it comes after.

    Args:
        alone: (N,) the prediction of each task, calibrated for itself.
        chains: What :func:`chains_of` gives.
        conditional: Whether tasks that come after another one also give their conditional probability.
        score: The formula by which rows are ranked, if there is one.
    """
    predictions = {name: np.minimum.reduce([alone[task] for task in chain]) for name, chain in chains.items()}
    found = dict(predictions)
    if conditional:
        for name, (_, *firsts) in chains.items():
            if firsts:
                first_N = np.maximum(predictions[firsts[0]], np.finfo(np.float32).tiny)
                found[f"{name}{CONDITIONAL}"] = predictions[name] / first_N
    if score is not None:
        found[SCORE] = score(predictions)
    return found
