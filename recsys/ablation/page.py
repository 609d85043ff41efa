"""The page of a study, for readers who did not run it."""

from collections.abc import Iterator
from pathlib import Path

import polars as pl
from markupsafe import Markup

from recsys.ablation.arms import BASE
from recsys.ablation.effects import ALL_ROWS
from recsys.ablation.figures import FORESTS, Figures
from recsys.ablation.study import Study
from recsys.ablation.tables import Findings
from recsys.config.yaml_files import to_yaml
from recsys.plots.style import svg
from recsys.reports.pages import NONE, Grid, Line, Section, Tile, byte_size, duration, figure_of, signed, write_page

_VERDICT_CLASS = {"better": "good", "worse": "bad", "no effect": "unsure", "cannot tell": "unsure"}


class StudyPage:
    """The sections of one study's page.

    Args:
        study: The study.
        findings: What it found.
        figures: Drawings and captions by file name, see :func:`~recsys.ablation.figures.study_figures`.
    """

    def __init__(self, study: Study, findings: Findings, figures: Figures) -> None:
        self.study, self.findings, self.figures = study, findings, figures
        self.metric = findings.metric
        self.tolerance = study.study.tolerance
        self.level = f"{100 * study.study.level:.3g}%"

    def write(self, out: Path) -> None:
        """Write the page."""
        base = self.study.arms[0]
        rows = self.study.target.judge.rows[ALL_ROWS]
        write_page(
            out,
            title=f"{self.study.config.name}: what matters",
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
                f"Without {unit} the model loses {share:.0%} of its AUC above 0.5. A feature with such an effect "
                "often leaks the label: check how it is computed, and whether it is known when a row is scored."
            )
        for row in self.findings.arms.filter(pl.col("failed") != "").iter_rows(named=True):
            yield f"{row['arm']} failed and is not compared: {row['failed']}."
        if self.study.study.seeds < 3:
            yield f"{self.study.study.seeds} seeds say little about how much training itself varies: use at least 3."
        if self.study.stopped:
            names = ", ".join(f"{arm} (after {seeds})" for arm, seeds in self.study.stopped.items())
            yield f"Stopped early, because others were better: {names}. Only their rank matters."

    def _tiles(self) -> Iterator[Tile]:
        reference = self.findings.effects.filter(metric=self.metric.name, slice=ALL_ROWS, reference=BASE)
        value = reference["reference_value"][0] if len(reference) else None
        yield Tile(f"Test {self.metric.label} of the base", figure_of(value), f"mean of {self.study.study.seeds} seeds")
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
        yield Section(f"What each arm does to the {self.metric.label}", wide=forests)
        yield Section(
            "Every metric",
            f"Arm less reference, mean over seeds. Figures in colour are significant after "
            f"{'Holm' if self.study.study.correction == 'holm' else 'Benjamini-Hochberg'}'s correction over all arms. "
            "“Cannot tell” is a result: it comes with the number of seeds that would tell, if any number would.",
            grids=[self._effect_grid()],
        )
        costs = [drawn[name] for name in drawn if name.startswith("cost-")]
        yield Section("Cost against benefit", "What an arm costs, beside what it gives.", [self._cost_grid()], costs)
        if "pairs" in drawn:
            yield Section("Pairs", figures=[drawn["pairs"]], grids=[self._pair_grid()])
        yield Section(
            "Slices",
            f"Change of {self.metric.label} on parts of the test rows; in colour if significant.",
            [self._slice_grid()],
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
        measured = set(self.findings.effects["metric"])
        others = [m for m in self.study.target.metrics if m.name in measured and m is not self.metric]
        whole = self.findings.effects.filter(pl.col("slice") == ALL_ROWS)
        cells = {(row["arm"], row["metric"]): row for row in whole.iter_rows(named=True)}
        order = self.findings.main([kind for _, kinds, _ in FORESTS.values() for kind in kinds])["arm"]
        lines = []
        for arm in order:
            main = cells[arm, self.metric.name]
            tell = main["seeds_that_tell"]
            verdict = Markup('<span class="{}">{}</span>').format(_VERDICT_CLASS[main["verdict"]], main["verdict"])
            if main["verdict"] == "cannot tell":
                verdict += Markup("<small>{}</small>").format(f"{tell} seeds" if tell else "needs more test rows")
            interval = f"{signed(main['low'])} to {signed(main['high'])}"
            values = [_coloured(cells.get((arm, metric.name))) for metric in others]
            lines.append(Line([arm, _coloured(main), interval, _p(main["p_corrected"]), verdict, *values]))
        names = [f"Δ {metric.label}" for metric in others]
        heads = ["Arm", f"Δ {self.metric.label}", f"{self.level} interval", "p", "Verdict", *names]
        return Grid(heads, lines, texts=(0, 4))

    def _cost_grid(self) -> Grid:
        lines = [
            Line(
                [
                    row["arm"],
                    str(row["features"]),
                    figure_of(row[f"valid_{self.metric.name}"]),
                    byte_size(row["artifact_bytes"]),
                    _byte_change(row["artifact_bytes_change"]),
                    duration(row["train_seconds"]),
                    f"{row['score_rows_per_s'] or 0:,.0f}" if row["score_rows_per_s"] else NONE,
                ],
                "strong" if row["arm"] == BASE else "",
            )
            for row in self.findings.arms.filter(pl.col("artifact_bytes").is_not_null()).iter_rows(named=True)
        ]
        heads = [
            "Arm",
            "Features",
            f"Valid {self.metric.label}",
            "Artifact",
            "Change",
            "Training time",
            "Scoring rows/s",
        ]
        return Grid(heads, lines)

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
        sliced = self.findings.effects.filter(metric=self.metric.name)
        names = [name for name in self.study.target.judge.rows if name in sliced["slice"].unique()]
        cells = {(row["arm"], row["slice"]): row for row in sliced.iter_rows(named=True)}
        order = self.findings.main([kind for _, kinds, _ in FORESTS.values() for kind in kinds])["arm"]
        rows = [Line(["rows", *(f"{len(self.study.target.judge.rows[name]):,}" for name in names)])]
        rows += [Line([arm, *(_coloured(cells.get((arm, name))) for name in names)]) for arm in order]
        return Grid(["Arm", *names], rows)

    def _recommendation(self) -> Section:
        arm = self.findings.recommended
        gone = [name for name in self.study.arms[0].features if name not in arm.features]
        effect = self.findings.effects.filter(arm=arm.name, metric=self.metric.name, slice=ALL_ROWS, reference=BASE)
        cost = ""
        if len(effect):
            row = effect.row(0, named=True)
            cost = (
                f" Its test {self.metric.label} differs from that of all features by {signed(row['effect'])} "
                f"({signed(row['low'])} to {signed(row['high'])})."
            )
        return Section(
            "Recommended",
            f"The fewest features whose validation {self.metric.label} is within {self.tolerance:g} of the best arm: "
            f"{', '.join(arm.features)}. Dropped: {', '.join(gone) or 'none'}.{cost} The choice was made on the "
            "validation split, so the test rows judge it fairly.",
            listings=[("recommended.yaml", to_yaml(self.study.experiment(arm)))],
        )

    def _how(self) -> Section:
        study = self.study.study
        text = (
            "All arms share the split and the seeds, and have the same hyperparameters, epochs and rule for stopping "
            "early, unless a key of theirs is what the arm varies. Effects are differences on the same test rows. "
            "Their intervals cover two uncertainties: which users are in the test rows (clustered DeLong for AUC, a "
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


def _coloured(effect: dict[str, object] | None) -> Markup:
    if effect is None:
        return Markup(NONE)
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
