"""The tables of a finished study, for its page, its Markdown and its CSV files."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from data_pipelines.notebook import html_table
from recsys.ablation.arms import WARM, Arm
from recsys.ablation.effects import ALL_ROWS
from recsys.ablation.study import Study
from recsys.metrics.binary import AUC
from recsys.metrics.metric import Metric

COSTS = ("artifact_bytes", "train_seconds", "score_rows_per_s")


@dataclass(frozen=True)
class Findings:
    """Everything that a study found.

    Attributes:
        metric: The main metric, which arms are ranked by.
        arms: One row per arm: what it is, the main metric on the valid split and costs (means over seeds), how costs
            differ from those of its reference, and why it failed, if it did.
        effects: One row per arm, metric and slice (:data:`~recsys.ablation.effects.EFFECT_COLUMNS`).
        interactions: One row per pair (:data:`~recsys.ablation.effects.INTERACTION_COLUMNS`).
        trials: One row per trial: arm, seed, name in the store, figures.
        leaks: Units whose removal costs implausibly much, with the share of the AUC above 0.5 that they carry.
        recommended: The arm with the fewest features within the tolerance.
        warm_rank_correlation: Spearman's correlation of warm-started and retrained effects; ``None`` if not measured.
    """

    metric: Metric
    arms: pl.DataFrame
    effects: pl.DataFrame
    interactions: pl.DataFrame
    trials: pl.DataFrame
    leaks: dict[str, float]
    recommended: Arm
    warm_rank_correlation: float | None

    def main(self, kinds: Sequence[str]) -> pl.DataFrame:
        """Effects on the main metric of all rows of some kinds of arms, the worst first."""
        chosen = (
            (pl.col("metric") == self.metric.name) & (pl.col("slice") == ALL_ROWS) & pl.col("kind").is_in(list(kinds))
        )
        effects = self.effects.filter(chosen)
        return effects.sort("effect", "arm", descending=[self.metric.better == "lower", False])

    def _repr_html_(self) -> str:
        from recsys.plots.studies import Row, forest
        from recsys.plots.style import css_variables, svg

        effects = self.main(sorted(set(self.effects["kind"])))
        columns = ("arm", "effect", "low", "high", "verdict")
        label = f"{self.metric.label}: effect of each arm"
        rows = [Row(*values) for values in effects.select(columns).iter_rows()]
        summary = {
            "arms": len(self.arms),
            "trials": len(self.trials),
            "main metric": self.metric.label,
            "recommended": self.recommended.name,
            "possible leaks": list(self.leaks) or "none",
        }
        table = html_table("Ablation study", summary)
        if not rows:
            return table
        colours = f"{css_variables('light')} background: var(--surface)"
        return f'{table}<div style="{colours}">{svg(forest("", label, rows), label)}</div>'


def find(study: Study) -> Findings:
    """Judge a study whose trials have all finished."""
    effects = study.effects()
    return Findings(
        metric=study.target.main,
        arms=_arms(study),
        effects=effects,
        interactions=study.interactions(),
        trials=_trials(study),
        leaks=leaks(effects, study.arms[0].features, study.study.leak_share),
        recommended=study.recommended(),
        warm_rank_correlation=_warm_rank_correlation(effects, study.target.main),
    )


def _arms(study: Study) -> pl.DataFrame:
    costs = {arm.name: _costs(study, arm) for arm in study.arms}
    rows = []
    for arm in study.arms:
        own, reference = costs[arm.name], costs[arm.reference]
        row: dict[str, object] = {
            "arm": arm.name,
            "kind": arm.kind,
            "reference": arm.reference,
            "features": len(arm.features),
            "seeds": len(study.trials(arm)),
            "stopped_early": arm.name in study.stopped,
            f"valid_{study.target.main.name}": study.valid_value(arm) if arm.trains else None,
            "note": next((f.note for f in study.figures(arm) if f.note), ""),
            "failed": study.failure(arm),
        }
        for name in COSTS:
            ours, theirs = own[name], reference[name]
            row[name] = ours
            row[f"{name}_change"] = None if ours is None or theirs is None else ours - theirs
        rows.append(row)
    return pl.DataFrame(rows, infer_schema_length=None)


def _costs(study: Study, arm: Arm) -> dict[str, float | None]:
    """Means over seeds; ``None`` if a trial did not measure it."""
    found: dict[str, float | None] = {}
    for name in COSTS:
        values = [getattr(figures, name) for figures in study.figures(arm)]
        found[name] = None if None in values else statistics.mean(values)
    return found


def _trials(study: Study) -> pl.DataFrame:
    rows = [
        {
            "arm": arm.name,
            "seed": trial.seed,
            "trial": trial.name,
            "steps": figures.steps,
            "seconds": figures.seconds,
            **{name: getattr(figures, name) for name in COSTS},
        }
        for arm in study.arms
        for trial, figures in zip(study.trials(arm), study.figures(arm), strict=True)
    ]
    return pl.DataFrame(rows, infer_schema_length=None)


def leaks(effects: pl.DataFrame, features: Sequence[str], share: float) -> dict[str, float]:
    """Features (not groups) that alone carry more than ``share`` of the AUC above 0.5, with the share they carry."""
    arms = {f"without {name}": name for name in features}
    losses = effects.filter(
        (pl.col("metric") == AUC.name)
        & (pl.col("slice") == ALL_ROWS)
        & (pl.col("kind") == "leave_one_out")
        & (pl.col("verdict") == "worse")
        & pl.col("arm").is_in(list(arms))
    )
    carried = {
        arms[row["arm"]]: -row["effect"] / (row["reference_value"] - 0.5) for row in losses.iter_rows(named=True)
    }
    return {name: part for name, part in carried.items() if part > share}


def _warm_rank_correlation(effects: pl.DataFrame, metric: Metric) -> float | None:
    chosen = effects.filter((pl.col("metric") == metric.name) & (pl.col("slice") == ALL_ROWS))
    warm = chosen.filter(kind="warm_start").select(pl.col("arm").str.strip_prefix(WARM), warm="effect")
    both = warm.join(chosen.filter(kind="leave_one_out").select("arm", retrained="effect"), on="arm")
    if len(both) < 3:
        return None
    return float(both.select(pl.corr("warm", "retrained", method="spearman")).item())
