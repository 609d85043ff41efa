"""From the test logits of all arms to effects with intervals, corrected for how many arms there are.

Letters: N test rows, U users, R bootstrap draws, S seeds.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from recsys.ablation.arms import Arm
from recsys.config.study import StudyConfig
from recsys.evaluation.comparison import TestRows
from recsys.metrics.metrics import LOWER_IS_BETTER
from recsys.metrics.significance import (
    Effect,
    Floats,
    benjamini_hochberg,
    combine,
    holm,
    pooled_seed_variance,
    seeds_that_tell,
)

ALL_ROWS = "all rows"
SLICED_METRICS = ("auc", "logloss")
_FEWEST_ROWS = 50

EFFECT_COLUMNS = {
    "arm": pl.String,
    "kind": pl.String,
    "reference": pl.String,
    "metric": pl.String,
    "slice": pl.String,
    "rows": pl.Int64,
    "seeds": pl.Int64,
    "reference_value": pl.Float64,
    "arm_value": pl.Float64,
    "effect": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "p_value": pl.Float64,
    "p_corrected": pl.Float64,
    "verdict": pl.String,
    "seeds_that_tell": pl.Int64,
}
"""One row an arm, metric and slice. ``effect`` is arm less reference, mean over seeds, with an interval that allows for
the number of arms as ``p_corrected`` does.

``verdict``: ``better`` or ``worse`` (significant after correction), ``no effect`` (the interval lies within the
tolerance), ``cannot tell``. ``seeds_that_tell``: how many seeds would find an effect of this size with 80% power; null
where no number would, because the test rows are too few.
"""

INTERACTION_COLUMNS = {
    "first": pl.String,
    "second": pl.String,
    "interaction": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "p_value": pl.Float64,
    "p_corrected": pl.Float64,
}


class Part(NamedTuple):
    """One trial's metric: its value, and what its variance over users is computed from.

    ``parts`` are AUC influences (U,) (clustered DeLong), or bootstrap draws (R,). Both can be averaged over seeds and
    subtracted between arms before taking the variance, which is what makes the comparison paired.
    """

    value: float
    parts: Floats


class Judge:
    """Compares arms on the test rows and their slices.

    Args:
        slices: (N,) boolean by name, beside all rows.
    """

    def __init__(
        self,
        study: StudyConfig,
        labels_N: ArrayLike,
        users_N: ArrayLike | None,
        slices: Mapping[str, NDArray[np.bool_]],
    ) -> None:
        self.study = study
        masks: dict[str, NDArray[np.bool_] | None] = {ALL_ROWS: None, **slices}
        self.rows = {name: TestRows(labels_N, users_N, rows_N=mask) for name, mask in masks.items()}
        self._cache: dict[tuple[str, str, str], Part] = {}

    def part(self, trial: str, logits_N: Floats, metric: str, slice_name: str) -> Part:
        """A trial's metric on a slice, computed once."""
        key = (trial, metric, slice_name)
        if key not in self._cache:
            rows = self.rows[slice_name]
            if metric == "auc":
                self._cache[key] = Part(*rows.auc_influence(logits_N))
            else:
                measured = rows.measure(metric, logits_N)
                self._cache[key] = Part(measured.value, measured.draws_R)
        return self._cache[key]

    def views(self) -> Iterator[tuple[str, str]]:
        """Metric and slice of every table of effects."""
        for metric in self.study.metrics:
            for name, rows in self.rows.items():
                both = 0 < rows.labels_N.sum() < len(rows)
                if both and (name == ALL_ROWS or (metric in SLICED_METRICS and len(rows) >= _FEWEST_ROWS)):
                    yield metric, name

    def effects(self, arms: Sequence[Arm], logits: Mapping[str, Mapping[str, Floats]]) -> pl.DataFrame:
        """All effects, as :data:`EFFECT_COLUMNS` describes.

        Args:
            logits: By arm, then by the name of the trial, one for each seed and seeds in the same order in every arm.
        """
        compared = [arm for arm in arms if arm.name != arm.reference and arm.kind not in ("base", "core")]
        rows: list[dict[str, object]] = []
        for metric, slice_name in self.views():
            rows.extend(self._view(compared, logits, metric, slice_name))
        return pl.DataFrame(rows, schema=EFFECT_COLUMNS)

    def _view(
        self, arms: Sequence[Arm], logits: Mapping[str, Mapping[str, Floats]], metric: str, slice_name: str
    ) -> list[dict[str, object]]:
        parts = {
            name: [self.part(trial, logits_N, metric, slice_name) for trial, logits_N in trials.items()]
            for name, trials in logits.items()
        }
        paired = [list(zip(parts[arm.name], parts[arm.reference], strict=False)) for arm in arms]
        differences = [[ours.value - theirs.value for ours, theirs in pairs] for pairs in paired]
        # looks at one trained model vary less between seeds than models trained anew
        priors = {
            trains: pooled_seed_variance([d for arm, d in zip(arms, differences, strict=True) if arm.trains == trains])
            for trains in (True, False)
        }
        effects = [
            combine(
                difference,
                _variance(metric, [ours.parts - theirs.parts for ours, theirs in pairs]),
                prior=priors[arm.trains],
            )
            for arm, pairs, difference in zip(arms, paired, differences, strict=True)
        ]
        effects, corrected, level = self._corrected(effects)
        return [
            {
                "arm": arm.name,
                "kind": arm.kind,
                "reference": arm.reference,
                "metric": metric,
                "slice": slice_name,
                "rows": len(self.rows[slice_name]),
                "seeds": len(pairs),
                "reference_value": (reference := float(np.mean([theirs.value for _, theirs in pairs]))),
                "arm_value": reference + effect.value,
                "effect": effect.value,
                "low": effect.low,
                "high": effect.high,
                "p_value": effect.p_value,
                "p_corrected": float(p),
                "verdict": (verdict := self._verdict(metric, effect, float(p), reference)),
                "seeds_that_tell": seeds_that_tell(effect, level=level) if verdict == "cannot tell" else None,
            }
            for arm, pairs, effect, p in zip(arms, paired, effects, corrected, strict=True)
        ]

    def interactions(self, arms: Sequence[Arm], logits: Mapping[str, Mapping[str, Floats]]) -> pl.DataFrame:
        """How the AUC lost without a pair of units differs from what both lose alone, as ``INTERACTION_COLUMNS``.

        Below zero the two stand in for each other: only without both is what they share lost.
        """
        pairs = [arm for arm in arms if arm.kind == "pair"]
        alone = {arm.units[0]: arm.name for arm in arms if arm.kind == "leave_one_out"}
        contrasts = []
        for arm in pairs:
            names = (arm.name, alone[arm.units[0]], alone[arm.units[1]], arm.reference)
            seeds = zip(*(logits[name].items() for name in names), strict=False)
            parts = [[self.part(trial, values, "auc", ALL_ROWS) for trial, values in seed] for seed in seeds]
            contrasts.append(
                [
                    Part(b.value - a1.value - a2.value + base.value, b.parts - a1.parts - a2.parts + base.parts)
                    for b, a1, a2, base in parts
                ]
            )
        values = [[contrast.value for contrast in seeds] for seeds in contrasts]
        prior = pooled_seed_variance(values)
        found = [
            combine(difference, _variance("auc", [contrast.parts for contrast in seeds]), prior=prior)
            for difference, seeds in zip(values, contrasts, strict=True)
        ]
        found, corrected, _ = self._corrected(found)
        rows = [
            (*arm.units, effect.value, effect.low, effect.high, effect.p_value, float(p))
            for arm, effect, p in zip(pairs, found, corrected, strict=True)
        ]
        return pl.DataFrame(rows, schema=INTERACTION_COLUMNS, orient="row")

    def _corrected(self, effects: Sequence[Effect]) -> tuple[list[Effect], Floats, float]:
        """Effects with intervals, and p-values, that allow for how many there are; and the level of each interval.

        With Holm's p-values go intervals that hold all together (Bonferroni); with Benjamini-Hochberg's, intervals of
        which those of the significant effects hold at the level (Benjamini and Yekutieli, 2005,
        doi:10.1198/016214504000001907).
        """
        if not effects:
            return [], np.empty(0), self.study.level
        miss, p_values = 1 - self.study.level, [effect.p_value for effect in effects]
        if self.study.correction == "holm":
            corrected, share = holm(p_values), 1 / len(effects)
        else:
            corrected = benjamini_hochberg(p_values)
            share = max(1, int((corrected < miss).sum())) / len(effects)
        level = 1 - miss * share
        return [effect.at(level) for effect in effects], corrected, level

    def _verdict(self, metric: str, effect: Effect, p: float, reference: float) -> str:
        if p < 1 - self.study.level:
            gain = effect.value
            if metric in LOWER_IS_BETTER:
                gain = -gain
            elif metric == "calibration":
                gain = abs(reference - 1) - abs(reference + effect.value - 1)
            return "better" if gain > 0 else "worse"
        within = -self.study.tolerance <= effect.low and effect.high <= self.study.tolerance
        return "no effect" if within else "cannot tell"


def _variance(metric: str, parts_of_seeds: Sequence[Floats]) -> float:
    """Variance over users of a difference's mean over seeds."""
    mean = np.mean(parts_of_seeds, axis=0)
    if metric == "auc":
        return float((mean**2).sum() * len(mean) / max(len(mean) - 1, 1))
    return float(np.nanvar(mean))
