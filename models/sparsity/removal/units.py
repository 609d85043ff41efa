"""Removing hidden units of a ranker from its matrices."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.weights import Weights


def remove_dead_units(weights: "Weights") -> None:
    """Remove units without effect from the matrices, and narrow the config: logits stay the same.

    All experts of a mixture have the same width: that of the expert with the most living units.
    """
    with weights.narrowing() as ranker:
        groups = ranker.unit_groups()
        if groups:
            ranker.narrow_units([group.alive() for group in groups])
