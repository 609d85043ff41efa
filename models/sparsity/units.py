"""Taking hidden units of a ranker out of its matrices."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.weights import Weights


def remove_dead_units(weights: "Weights") -> None:
    """Take units that say nothing out of the matrices, and narrow the config: logits stay the same.

    The experts of a mixture stay of one width, that of the expert with most living units.
    """
    with weights.narrowing() as ranker:
        groups = ranker.unit_groups()
        if groups:
            ranker.narrow_units([group.alive() for group in groups])
