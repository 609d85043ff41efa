"""Search for a small set of features. Sets are judged on the validation split; the test rows stay unseen.

Each strategy is a generator: it yields the sets of features to train next, is sent their validation AUC, and returns
when nothing is left to try. It does not depend on how sets are trained.
"""

from collections.abc import Generator, Mapping, Sequence

FeatureSet = tuple[str, ...]
Scores = Mapping[FeatureSet, float]
Search = Generator[list[FeatureSet], Scores, None]


def forward(everything: FeatureSet, core: FeatureSet, *, tolerance: float) -> Search:
    """Repeatedly add the feature that helps most, until none adds more than ``tolerance``."""
    current = core
    best = (yield [core])[core] if core else float("-inf")
    while len(current) < len(everything):
        grown = [_in_order(everything, {*current, feature}) for feature in everything if feature not in current]
        scores = yield grown
        winner = max(grown, key=scores.__getitem__)
        if scores[winner] <= best + tolerance:
            return
        current, best = winner, scores[winner]


def backward(everything: FeatureSet, *, tolerance: float) -> Search:
    """Repeatedly drop the feature whose removal costs least, while the best AUC is within ``tolerance``."""
    current = everything
    best = (yield [everything])[everything]
    while len(current) > 1:
        shrunk = [tuple(other for other in current if other != feature) for feature in current]
        scores = yield shrunk
        winner = max(shrunk, key=scores.__getitem__)
        if scores[winner] < best - tolerance:
            return
        current, best = winner, max(best, scores[winner])


def path(everything: FeatureSet, *, tolerance: float) -> Search:
    """Drop features in ascending order of what each one's removal costs, while the AUC is within ``tolerance``."""
    alone = [tuple(other for other in everything if other != feature) for feature in everything]
    if len(everything) < 2:
        return
    scores = yield [everything, *alone]
    order = sorted(everything, key=lambda feature: -scores[alone[everything.index(feature)]])
    best, gone = max(scores.values()), {order[0]}
    for feature in order[1:-1]:
        gone.add(feature)
        kept = tuple(other for other in everything if other not in gone)
        score = (yield [kept])[kept]
        if score < best - tolerance:
            return
        best = max(best, score)


def smallest_within(scores: Scores, tolerance: float) -> FeatureSet:
    """The smallest set whose AUC is within ``tolerance`` of the best; among equal sizes, the better one."""
    best = max(scores.values())
    near = [features for features, score in scores.items() if score >= best - tolerance]
    return min(near, key=lambda features: (len(features), -scores[features]))


def _in_order(everything: Sequence[str], kept: set[str]) -> FeatureSet:
    return tuple(feature for feature in everything if feature in kept)
