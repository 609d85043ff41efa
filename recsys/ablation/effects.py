"""Effects of all arms from their test logits, with intervals that are corrected for the number of arms.

Letters: N test rows, U users, R bootstrap draws, S seeds.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from models.layers.heads import TaskKind
from recsys.ablation.arms import Arm
from recsys.config.study import StudyConfig
from recsys.evaluation.comparison import TestRows
from recsys.metrics.arrays import Floats
from recsys.metrics.binary import LOG_LOSS
from recsys.metrics.metric import Metric
from recsys.metrics.rows import RowFacts
from recsys.metrics.significance import (
    Effect,
    benjamini_hochberg,
    combine,
    holm,
    pooled_seed_variance,
    seeds_that_tell,
)

ALL_ROWS = "all rows"
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
"""One row per arm, metric and slice. ``effect`` is arm minus reference, mean over seeds, with an interval that is
corrected for the number of arms, like ``p_corrected``.

``verdict``: ``better`` or ``worse`` (significant after correction), ``no effect`` (the interval is within the
tolerance), ``cannot tell``. ``seeds_that_tell``: how many seeds would find an effect of this size with 80% power; null
if no number would, because there are too few test rows.
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


class Sample(NamedTuple):
    """One trial's metric: its value, and the terms of its variance over users.

    ``parts`` are influences (U,) (clustered DeLong, for AUC), or bootstrap draws (R,). Both can be averaged over seeds
    and subtracted between arms before taking the variance, which is what makes the comparison paired.
    """

    value: float
    parts: Floats


class Judge:
    """Compares arms on the test rows and their slices.

    Args:
        study: Level, correction and tolerance.
        metrics: The metrics that arms are compared by; ``main`` is the one that they are ranked by.
        labels_N: Labels of the test rows, NaN where a row has none.
        facts: Their users, lists and weights.
        slices: (N,) boolean masks by name, in addition to all rows.
        kind: The kind of the task.
    """

    def __init__(
        self,
        study: StudyConfig,
        metrics: Sequence[Metric],
        main: Metric,
        labels_N: ArrayLike,
        facts: RowFacts,
        slices: Mapping[str, NDArray[np.bool_]],
        *,
        kind: TaskKind,
    ) -> None:
        self.study, self.metrics, self.main, self._kind = study, metrics, main, kind
        masks: dict[str, NDArray[np.bool_] | None] = {ALL_ROWS: None, **slices}
        self.rows = {name: TestRows.of(labels_N, facts, kind=kind, rows_N=mask) for name, mask in masks.items()}
        self._cache: dict[tuple[str, str, str], Sample] = {}

    def sample(self, trial: str, logits_N: Floats, metric: Metric, slice_name: str) -> Sample:
        """A trial's metric on a slice, computed once."""
        key = (trial, metric.name, slice_name)
        if key not in self._cache:
            rows = self.rows[slice_name]
            if metric.influence is not None:
                self._cache[key] = Sample(*rows.influence(metric, logits_N))
            else:
                measured = rows.measure(metric, logits_N)
                self._cache[key] = Sample(measured.value, measured.draws_R)
        return self._cache[key]

    def views(self) -> Iterator[tuple[Metric, str]]:
        """Metric and slice of every table of effects."""
        sliced = {self.main.name, LOG_LOSS.name}
        for metric in self.metrics:
            for name, rows in self.rows.items():
                varied = len(rows) > 1 and (self._kind != "binary" or 0 < rows.labels_N.sum() < len(rows))
                if varied and (name == ALL_ROWS or (metric.name in sliced and len(rows) >= _FEWEST_ROWS)):
                    yield metric, name

    def effects(self, arms: Sequence[Arm], logits: Mapping[str, Mapping[str, Floats]]) -> pl.DataFrame:
        """All effects, as :data:`EFFECT_COLUMNS` describes.

        Args:
            arms: All arms; those without logits, or whose reference has none, are left out.
            logits: By arm, then by the name of the trial, one for each seed and seeds in the same order in every arm.
        """
        compared = [
            arm
            for arm in arms
            if arm.name != arm.reference
            and arm.kind not in ("base", "core")
            and {arm.name, arm.reference} <= set(logits)
        ]
        rows: list[dict[str, object]] = []
        for metric, slice_name in self.views():
            rows.extend(self._view(compared, logits, metric, slice_name))
        return pl.DataFrame(rows, schema=EFFECT_COLUMNS)

    def _view(
        self, arms: Sequence[Arm], logits: Mapping[str, Mapping[str, Floats]], metric: Metric, slice_name: str
    ) -> list[dict[str, object]]:
        parts = {
            name: [self.sample(trial, logits_N, metric, slice_name) for trial, logits_N in trials.items()]
            for name, trials in logits.items()
        }
        pairs_of = {arm.name: list(zip(parts[arm.name], parts[arm.reference], strict=False)) for arm in arms}
        arms = [arm for arm in arms if _defined(pairs_of[arm.name])]
        paired = [pairs_of[arm.name] for arm in arms]
        differences = [[ours.value - theirs.value for ours, theirs in pairs] for pairs in paired]
        # looks at one trained model vary less between seeds than models that are trained again
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
                "metric": metric.name,
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
        """How the loss without a pair of units differs from the sum of their losses, see ``INTERACTION_COLUMNS``.

        It is measured in the main metric. If more is lost than by both alone, the two replace each other: what they
        share is lost only without both.
        """
        alone = {arm.units[0]: arm.name for arm in arms if arm.kind == "leave_one_out"}
        needed = {
            arm.name: (arm.name, alone[arm.units[0]], alone[arm.units[1]], arm.reference)
            for arm in arms
            if arm.kind == "pair"
        }
        pairs = [arm for arm in arms if arm.kind == "pair" and set(needed[arm.name]) <= set(logits)]
        contrasts = []
        for arm in pairs:
            names = needed[arm.name]
            seeds = zip(*(logits[name].items() for name in names), strict=False)
            parts = [[self.sample(trial, values, self.main, ALL_ROWS) for trial, values in seed] for seed in seeds]
            contrasts.append(
                [
                    Sample(b.value - a1.value - a2.value + base.value, b.parts - a1.parts - a2.parts + base.parts)
                    for b, a1, a2, base in parts
                ]
            )
        values = [[contrast.value for contrast in seeds] for seeds in contrasts]
        prior = pooled_seed_variance(values)
        found = [
            combine(difference, _variance(self.main, [contrast.parts for contrast in seeds]), prior=prior)
            for difference, seeds in zip(values, contrasts, strict=True)
        ]
        found, corrected, _ = self._corrected(found)
        rows = [
            (*arm.units, effect.value, effect.low, effect.high, effect.p_value, float(p))
            for arm, effect, p in zip(pairs, found, corrected, strict=True)
        ]
        return pl.DataFrame(rows, schema=INTERACTION_COLUMNS, orient="row")

    def _corrected(self, effects: Sequence[Effect]) -> tuple[list[Effect], Floats, float]:
        """Effects with corrected intervals and p-values, and the level of each interval.

        Holm's p-values come with simultaneous intervals (Bonferroni). Benjamini-Hochberg's come with intervals whose
        false coverage rate among significant effects is controlled (Benjamini and Yekutieli, 2005,
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

    def _verdict(self, metric: Metric, effect: Effect, p: float, reference: float) -> str:
        if p < 1 - self.study.level:
            gain = metric.goodness(reference + effect.value) - metric.goodness(reference)
            return "better" if gain > 0 else "worse"
        within = -self.study.tolerance <= effect.low and effect.high <= self.study.tolerance
        return "no effect" if within else "cannot tell"


def _defined(pairs: Sequence[tuple[Sample, Sample]]) -> bool:
    """Whether an arm and its reference have the metric in every seed; an undefined difference is not an effect."""
    return bool(pairs) and all(np.isfinite(sample.value) for pair in pairs for sample in pair)


def _variance(metric: Metric, parts_of_seeds: Sequence[Floats]) -> float:
    """Variance over users of a difference's mean over seeds."""
    mean = np.mean(parts_of_seeds, axis=0)
    if metric.influence is not None:
        return float((mean**2).sum() * len(mean) / max(len(mean) - 1, 1))
    return float(np.nanvar(mean))
