"""The page of a study, for whoever did not run it."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
from markupsafe import Markup

from recsys.ablation.arms import BASE, LOOKS, Kind
from recsys.ablation.effects import ALL_ROWS
from recsys.ablation.study import Study
from recsys.ablation.tables import Findings
from recsys.config.yaml_files import to_yaml
from recsys.metrics.metrics import METRICS
from recsys.plots.studies import Point, Row, cost_benefit, forest, heat_map
from recsys.plots.style import Draw, svg
from recsys.reports.pages import NONE, Grid, Line, Section, Tile, byte_size, duration, figure_of, signed, write_page

FORESTS: dict[str, tuple[str, tuple[Kind, ...], str]] = {
    "leave-one-out": (
        "Left out",
        ("leave_one_out",),
        "Each model is trained without the feature or group. Left of zero, the model misses it.",
    ),
    "add-one-in": ("Added to the core", ("add_one_in",), "Each model is trained with the core and one more feature."),
    "pairs": ("Left out in pairs", ("pair",), "Each model is trained without both."),
    "replace": ("Replaced", ("replace",), "Each model reads another variant in the place of a feature or group."),
    "looks": (
        "Taken from the trained model",
        tuple(LOOKS),
        "Nothing is trained anew: values are shuffled among test rows, or set to null. This shows what the model leans "
        "on, which is more than what it could not replace.",
    ),
    "warm-start": (
        "Left out, estimated from a warm start",
        ("warm_start",),
        "An approximation: tables are kept, and the dense part of the trained base goes on for one epoch with the "
        "feature set to null.",
    ),
    "search": ("Sets that the search tried", ("selection",), "Sets of features, chosen on the validation split."),
    "settings": ("Other settings", ("vary", "grid"), "Each model is trained with one or more keys changed."),
}
"""Forest plots by file name: title, kinds of arms, how to read it."""

_WORTH_THEIR_COST = ("base", "leave_one_out", "add_one_in", "replace", "selection", "vary", "grid")
_VERDICT_CLASS = {"better": "good", "worse": "bad", "no effect": "unsure", "cannot tell": "unsure"}


class StudyPage:
    """Figures and sections of one study; figures are drawn once and used for the page and as PNG files."""

    def __init__(self, study: Study, findings: Findings) -> None:
        self.study, self.findings = study, findings
        self.tolerance = study.study.tolerance
        self.level = f"{100 * study.study.level:.3g}%"

    @cached_property
    def figures(self) -> dict[str, tuple[Draw, str]]:
        """Drawings and captions by file name."""
        found: dict[str, tuple[Draw, str]] = {}
        for name, (title, kinds, caption) in FORESTS.items():
            effects = self.findings.main(kinds)
            if len(effects):
                rows = [
                    Row(row["arm"], row["effect"], row["low"], row["high"], row["verdict"])
                    for row in effects.iter_rows(named=True)
                ]
                label = f"change of test AUC; {self.level} intervals, corrected for all arms"
                found[f"forest-{name}"] = (
                    forest(f"{title}: effect on AUC", label, rows, tolerance=self.tolerance),
                    f"{caption} Filled points are significant after correction for all arms of the study. "
                    f"The band is the tolerance of {self.tolerance:g}.",
                )
        found |= dict(self._cost_figures())
        if len(self.findings.interactions):
            found["pairs"] = (self._heat_map(), self._heat_caption())
        return found

    def write(self, out: Path) -> None:
        """Write the page."""
        base = self.study.arms[0]
        rows = self.study.judge.rows[ALL_ROWS]
        write_page(
            out,
            title=f"{self.study.config.name}: what earns its keep",
            kind="Ablation study",
            lead=f"{len(self.study.arms)} arms, {self.study.study.seeds} seeds each. Judged on {len(rows):,} test rows "
            f"of {rows.users:,} {'users' if rows.has_users else 'rows'}, task {self.study.task}. The base model has "
            f"{len(base.features)} features.",
            alerts=self._alerts(),
            tiles=self._tiles(),
            sections=self._sections(),
        )

    def _alerts(self) -> Iterator[str]:
        for unit, share in self.findings.leaks.items():
            yield (
                f"Without {unit} the model loses {share:.0%} of its AUC above 0.5. That much from one feature often "
                "means that it knows the label: check how it is made, and whether it is known when a row is scored."
            )
        if self.study.study.seeds < 3:
            yield f"{self.study.study.seeds} seeds say little about how much training itself varies: use at least 3."
        if self.study.stopped:
            names = ", ".join(f"{arm} (after {seeds})" for arm, seeds in self.study.stopped.items())
            yield f"Stopped early, because others were better: {names}. Only their rank matters."

    def _tiles(self) -> Iterator[Tile]:
        reference = self.findings.effects.filter(metric="auc", slice=ALL_ROWS, reference=BASE)
        value = reference["reference_value"][0] if len(reference) else None
        yield Tile("Test AUC of the base", figure_of(value), f"mean of {self.study.study.seeds} seeds")
        verdicts = self.findings.main(["leave_one_out"])["verdict"].to_list()
        if verdicts:
            yield Tile("Left out and missed", f"{verdicts.count('worse')} of {len(verdicts)}", "features and groups")
        arms = {row["arm"]: row for row in self.findings.arms.iter_rows(named=True)}
        chosen = arms[self.findings.recommended.name]
        yield Tile(
            "Features to keep",
            f"{chosen['features']} of {arms[BASE]['features']}",
            f"artifact {byte_size(chosen['artifact_bytes'])} of {byte_size(arms[BASE]['artifact_bytes'])}",
        )
        yield Tile(
            "Trials",
            str(self.findings.trials["trial"].n_unique()),
            f"{duration(_seconds(self.findings.trials))} of computing",
        )

    def _sections(self) -> Iterator[Section]:
        drawn = {name: (svg(draw, name), caption) for name, (draw, caption) in self.figures.items()}
        forests = [drawn[name] for name in drawn if name.startswith("forest-")]
        yield Section("What each arm does to the AUC", wide=forests)
        yield Section(
            "Every metric",
            f"Arm less reference, mean over seeds. Figures in colour are significant after "
            f"{'Holm' if self.study.study.correction == 'holm' else 'Benjamini-Hochberg'}'s correction over all arms. "
            "“Cannot tell” is a result: beside it stands how many seeds would tell, if any number would.",
            grids=[self._effect_grid()],
        )
        costs = [drawn[name] for name in drawn if name.startswith("cost-")]
        yield Section("Cost against benefit", "What an arm costs, beside what it gives.", [self._cost_grid()], costs)
        if "pairs" in drawn:
            yield Section("Pairs", figures=[drawn["pairs"]], grids=[self._pair_grid()])
        yield Section(
            "Slices", "Change of AUC on parts of the test rows; in colour if significant.", [self._slice_grid()]
        )
        if self.findings.warm_rank_correlation is not None:
            yield Section(
                "How far the warm start can be trusted",
                grids=[
                    Grid(
                        ["", ""],
                        [
                            Line(
                                [
                                    "Spearman's rank correlation with retraining",
                                    f"{self.findings.warm_rank_correlation:.2f}",
                                ]
                            )
                        ],
                    )
                ],
            )
        yield self._recommendation()
        yield self._how()

    def _effect_grid(self) -> Grid:
        metrics = [m for m in self.study.judge.study.metrics if m in self.findings.effects["metric"].unique()]
        whole = self.findings.effects.filter(pl.col("slice") == ALL_ROWS)
        cells = {(row["arm"], row["metric"]): row for row in whole.iter_rows(named=True)}
        order = self.findings.main([kind for _, kinds, _ in FORESTS.values() for kind in kinds])["arm"]
        lines = []
        for arm in order:
            auc = cells[arm, "auc"]
            tell = auc["seeds_that_tell"]
            verdict = Markup('<span class="{}">{}</span>').format(_VERDICT_CLASS[auc["verdict"]], auc["verdict"])
            if auc["verdict"] == "cannot tell":
                verdict += Markup("<small>{}</small>").format(f"{tell} seeds" if tell else "needs more test rows")
            interval = f"{signed(auc['low'])} to {signed(auc['high'])}"
            values = [_coloured(cells[arm, metric]) for metric in metrics if metric != "auc"]
            lines.append(Line([arm, _coloured(auc), interval, _p(auc["p_corrected"]), verdict, *values]))
        names = [f"Δ {METRICS[metric]}" for metric in metrics if metric != "auc"]
        return Grid(["Arm", "Δ AUC", f"{self.level} interval", "p", "Verdict", *names], lines, texts=(0, 4))

    def _cost_grid(self) -> Grid:
        lines = [
            Line(
                [
                    row["arm"],
                    str(row["features"]),
                    figure_of(row["valid_auc"]),
                    byte_size(row["artifact_bytes"]),
                    _byte_change(row["artifact_bytes_change"]),
                    duration(row["train_seconds"]),
                    f"{row['score_rows_per_s'] or 0:,.0f}" if row["score_rows_per_s"] else NONE,
                ],
                "strong" if row["arm"] == BASE else "",
            )
            for row in self.findings.arms.filter(pl.col("artifact_bytes").is_not_null()).iter_rows(named=True)
        ]
        return Grid(["Arm", "Features", "Valid AUC", "Artifact", "Change", "Training time", "Scoring rows/s"], lines)

    def _pair_grid(self) -> Grid:
        lines = [
            Line(
                [
                    f"{row['first']} and {row['second']}",
                    signed(row["interaction"]),
                    f"{signed(row['low'])} to {signed(row['high'])}",
                    _p(row["p_corrected"]),
                ]
            )
            for row in self.findings.interactions.sort("interaction").iter_rows(named=True)
        ]
        return Grid(["Pair", "Interaction", f"{self.level} interval", "p"], lines)

    def _slice_grid(self) -> Grid:
        sliced = self.findings.effects.filter(metric="auc")
        names = [name for name in self.study.judge.rows if name in sliced["slice"].unique()]
        cells = {(row["arm"], row["slice"]): row for row in sliced.iter_rows(named=True)}
        order = self.findings.main([kind for _, kinds, _ in FORESTS.values() for kind in kinds])["arm"]
        rows = [Line(["rows", *(f"{len(self.study.judge.rows[name]):,}" for name in names)])]
        rows += [Line([arm, *(_coloured(cells[arm, name]) for name in names)]) for arm in order]
        return Grid(["Arm", *names], rows)

    def _recommendation(self) -> Section:
        arm = self.findings.recommended
        gone = [name for name in self.study.arms[0].features if name not in arm.features]
        effect = self.findings.effects.filter(arm=arm.name, metric="auc", slice=ALL_ROWS, reference=BASE)
        cost = ""
        if len(effect):
            row = effect.row(0, named=True)
            cost = (
                f" Its test AUC differs from that of all features by {signed(row['effect'])} "
                f"({signed(row['low'])} to {signed(row['high'])})."
            )
        return Section(
            "Recommended",
            f"The fewest features whose validation AUC is within {self.tolerance:g} of the best arm: "
            f"{', '.join(arm.features)}. Dropped: {', '.join(gone) or 'none'}.{cost} The choice was made on the "
            "validation split, so the test rows judge it fairly.",
            listings=[("recommended.yaml", to_yaml(self.study.experiment(arm)))],
        )

    def _how(self) -> Section:
        study = self.study.study
        text = (
            "All arms share the split and the seeds, and have the same hyperparameters, epochs and rule for stopping "
            "early, unless a key of theirs is what the arm varies. Effects are differences on the same test rows. "
            "Their intervals hold two sources of doubt: which users are in the test rows (clustered DeLong for AUC, a "
            "bootstrap over users for the rest), and which seed trained the model (variance between seeds, shrunk "
            "towards what all arms show). "
            f"Verdicts and intervals are at the {self.level} level after correction for all arms. To repeat an arm, "
            "train its config."
        )
        names = {arm.name: f"arms/{index:03}.yaml" for index, arm in enumerate(self.study.arms) if arm.trains}
        lines = []
        for arm in self.study.arms:
            trials = self.findings.trials.filter(arm=arm.name)
            lines.append(
                Line(
                    [
                        arm.name,
                        arm.kind.replace("_", " "),
                        ", ".join(str(seed) for seed in trials["seed"]),
                        duration(_seconds(trials)),
                        Markup("<code>{}</code>").format(names.get(arm.name, f"as {arm.reference}")),
                        Markup("<code>{}</code>").format(" ".join(name[:8] for name in trials["trial"])),
                    ]
                )
            )
        command = f"recsys train STUDY/arms/000.yaml {self.study.dataset.path} RUN seed={self.study.config.seed}"
        return Section(
            "What was run, and how to repeat it",
            text,
            [Grid(["Arm", "Kind", "Seeds", "Time", "Config", "Trials"], lines, texts=(0, 1, 4, 5))],
            listings=[("Repeat one arm", command), ("The study", to_yaml(study))],
        )

    def _cost_figures(self) -> Iterator[tuple[str, tuple[Draw, str]]]:
        effects = {
            row["arm"]: row for row in self.findings.effects.filter(metric="auc", slice=ALL_ROWS).iter_rows(named=True)
        }
        if not effects:
            return
        base = next(row["reference_value"] for row in effects.values() if row["reference"] == BASE)
        arms = [
            row
            for row in self.findings.arms.iter_rows(named=True)
            if row["kind"] in _WORTH_THEIR_COST and (row["arm"] in effects or row["arm"] == BASE)
        ]
        for name, key, title, text, less in (
            ("cost-bytes", "artifact_bytes", "AUC against artifact size", byte_size, True),
            ("cost-rate", "score_rows_per_s", "AUC against scoring rate", lambda x: f"{x / 1000:,.0f}k", False),
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
                draw = cost_benefit(title, label, "test AUC", points, x_text=text, less_is_better=less)
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
        return heat_map(
            "Interactions of pairs", names, value_FF, known_FF=known_FF, note="interaction in thousandths of AUC"
        )

    def _heat_caption(self) -> str:
        return (
            "What is lost without both, beyond what each costs alone. Below zero (rose) the two stand in for each "
            "other; above zero (teal) they work only together. Bold: significant after correction."
        )


def _around(effect: dict[str, float] | None, base: float) -> tuple[float, float]:
    return (base, base) if effect is None else (base + effect["low"], base + effect["high"])


def _coloured(effect: dict[str, object]) -> Markup:
    text = signed(effect["effect"])  # type: ignore[arg-type]
    return Markup('<span class="{}">{}</span>').format(_VERDICT_CLASS[str(effect["verdict"])], text)


def _seconds(trials: pl.DataFrame) -> float:
    return float(trials.unique("trial")["seconds"].sum())


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _byte_change(change: float | None) -> str:
    if not change:
        return NONE
    return ("+" if change > 0 else "\N{MINUS SIGN}") + byte_size(abs(change))
