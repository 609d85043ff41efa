"""The figures of a study."""

from collections.abc import Iterator

import numpy as np

from recsys.ablation.arms import BASE, LOOKS, Kind
from recsys.ablation.effects import ALL_ROWS
from recsys.ablation.study import Study
from recsys.ablation.tables import Findings
from recsys.plots.studies import Point, Row, cost_benefit, forest, heat_map
from recsys.plots.style import Draw
from recsys.reports.pages import byte_size

Figures = dict[str, tuple[Draw, str]]
"""Drawings and captions by file name."""

FORESTS: dict[str, tuple[str, tuple[Kind, ...], str]] = {
    "leave-one-out": (
        "Left out",
        ("leave_one_out",),
        "Each model is trained without the feature or group.",
    ),
    "without": (
        "Trained without the loss, lists, positions or weights",
        ("without",),
        "Each model is trained as if the data did not have them, and judged with all of them.",
    ),
    "add-one-in": ("Added to the core", ("add_one_in",), "Each model is trained with the core and one more feature."),
    "pairs": ("Left out in pairs", ("pair",), "Each model is trained without both."),
    "replace": ("Replaced", ("replace",), "Each model reads another variant instead of a feature or group."),
    "looks": (
        "Taken from the trained model",
        tuple(LOOKS),
        "Nothing is trained again: values are shuffled among test rows, or set to null. This shows what the model "
        "relies on, which is more than what it could not replace.",
    ),
    "experts": (
        "Experts left out",
        ("leave_out_expert",),
        "Nothing is trained again: the router of the trained base may not choose the expert, and its rows take their "
        "next best choice. Experts are numbered by how many test rows they get, the busiest first, because each seed "
        "numbers its experts at random.",
    ),
    "warm-start": (
        "Left out, estimated from a warm start",
        ("warm_start",),
        "An approximation: tables are kept, and the dense part of the trained base is trained for one more epoch with "
        "the feature set to null.",
    ),
    "search": ("Sets that the search tried", ("selection",), "Sets of features, chosen on the validation split."),
    "settings": ("Other settings", ("vary", "grid"), "Each model is trained with one or more keys changed."),
}
"""Forest plots by file name: title, kinds of arms, how to read it."""

_WORTH_THEIR_COST = ("base", "leave_one_out", "without", "add_one_in", "replace", "selection", "vary", "grid")


def study_figures(study: Study, findings: Findings) -> Figures:
    """All figures of a study, for its page and as PNG files."""
    return _Drawing(study, findings).figures()


class _Drawing:
    def __init__(self, study: Study, findings: Findings) -> None:
        self.study, self.findings = study, findings

    def figures(self) -> Figures:
        found: Figures = {}
        tolerance, level = self.study.study.tolerance, f"{100 * self.study.study.level:.3g}%"
        metric = self.findings.metric
        worse = "Right" if metric.better == "lower" else "Left"
        for name, (title, kinds, caption) in FORESTS.items():
            effects = self.findings.main(kinds)
            if len(effects):
                rows = [
                    Row(row["arm"], row["effect"], row["low"], row["high"], row["verdict"])
                    for row in effects.iter_rows(named=True)
                ]
                label = f"change of test {metric.label}; {level} intervals, corrected for all arms"
                found[f"forest-{name}"] = (
                    forest(f"{title}: effect on {metric.label}", label, rows, tolerance=tolerance),
                    f"{caption} {worse} of zero, the arm is worse. Filled points are significant after correction for "
                    f"all arms of the study. The band is the tolerance of {tolerance:g}.",
                )
        found |= dict(self._cost_figures())
        if len(self.findings.interactions):
            found["pairs"] = (self._heat_map(), self._heat_caption())
        return found

    def _cost_figures(self) -> Iterator[tuple[str, tuple[Draw, str]]]:
        metric = self.findings.metric
        main = self.findings.effects.filter(metric=metric.name, slice=ALL_ROWS)
        effects = {row["arm"]: row for row in main.iter_rows(named=True)}
        if not effects:
            return
        base = next(row["reference_value"] for row in effects.values() if row["reference"] == BASE)
        arms = [
            row
            for row in self.findings.arms.iter_rows(named=True)
            if row["kind"] in _WORTH_THEIR_COST and (row["arm"] in effects or row["arm"] == BASE)
        ]
        for name, key, title, text, less in (
            ("cost-bytes", "artifact_bytes", f"{metric.label} against artifact size", byte_size, True),
            (
                "cost-rate",
                "score_rows_per_s",
                f"{metric.label} against scoring rate",
                lambda x: f"{x / 1000:,.0f}k",
                False,
            ),
        ):
            points = [
                Point(
                    "recommended" if row["arm"] == self.findings.recommended.name else row["arm"],
                    row[key],
                    base if row["arm"] == BASE else effects[row["arm"]]["arm_value"],
                    *_around(effects.get(row["arm"]), base),
                    row["arm"] in (BASE, self.findings.recommended.name),
                )
                for row in arms
                if row[key] is not None
            ]
            if len(points) > 1:
                label = "artifact" if less else "rows scored a second"
                draw = cost_benefit(
                    title,
                    label,
                    f"test {metric.label}",
                    points,
                    x_text=text,
                    less_is_better=less,
                    low_benefit=metric.better == "lower",
                )
                yield (
                    name,
                    (draw, "The line joins the arms that no other beats in both. Bars are intervals of the change."),
                )

    def _heat_map(self) -> Draw:
        table = self.findings.interactions
        names = list(dict.fromkeys([*table["first"], *table["second"]]))
        value_FF = np.full((len(names), len(names)), np.nan)
        known_FF = np.zeros((len(names), len(names)), dtype=bool)
        for row in table.iter_rows(named=True):
            i, j = sorted((names.index(row["first"]), names.index(row["second"])), reverse=True)
            value_FF[i, j] = row["interaction"]
            known_FF[i, j] = row["p_corrected"] < 1 - self.study.study.level
        note = f"interaction in thousandths of {self.findings.metric.label}"
        return heat_map("Interactions of pairs", names, value_FF, known_FF=known_FF, note=note)

    def _heat_caption(self) -> str:
        return (
            "What is lost without both, beyond what each costs alone. "
            + (
                "Above zero (teal) the two replace each other; below zero (rose) they work only together."
                if self.findings.metric.better == "lower"
                else "Below zero (rose) the two replace each other; above zero (teal) they work only together."
            )
            + " Bold: significant after correction."
        )


def _thousands(value: float) -> str:
    return f"{value / 1000:,.0f}k"


def _around(effect: dict[str, float] | None, base: float) -> tuple[float, float]:
    return (base, base) if effect is None else (base + effect["low"], base + effect["high"])
