"""The report of a run, and of several runs side by side, as one HTML page.

Letters: N rows, T epochs, E experts.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from markupsafe import Markup
from scipy.special import expit

from data_pipelines.errors import UserError
from recsys.config.yaml_files import to_yaml
from recsys.evaluation.comparison import TestRows
from recsys.evaluation.evaluate import group_kinds
from recsys.exporting.measure import measure
from recsys.metrics.binary import AUC, CALIBRATION, LOG_LOSS, reliability
from recsys.metrics.bootstrap import Interval, interval
from recsys.metrics.metric import Metric
from recsys.metrics.registry import headline_metrics
from recsys.plots import runs as plots
from recsys.plots.style import svg
from recsys.reports.expert_sections import expert_loads, experts
from recsys.reports.pages import (
    NONE,
    Grid,
    Line,
    Section,
    Tile,
    byte_size,
    duration,
    figure_of,
    signed_with_interval,
    with_interval,
    write_page,
)
from recsys.reports.run_files import RunFiles
from recsys.reports.training_sections import learning, served_constants

_SPLITS = ("test", "valid")


@dataclass(frozen=True)
class Extras:
    """What a report can show besides the run itself.

    Attributes:
        ceiling: The best reachable test AUC, where the truth is known.
        tiles: More figures for the top of the page.
    """

    ceiling: float | None = None
    tiles: Sequence[Tile] = ()


def write_report(runs: Sequence[Path], out: Path, *, extras: Extras | None = None) -> Path:
    """Write the report of ``runs`` to ``out``; the first run is the one that others are compared with.

    Raises:
        UserError: One of them is not a run, or has no evaluated split.

    Example:
        >>> _ = rs.evaluate(Path("run"), rs.Dataset.open(Path("dataset")), "test")
        >>> rs.write_report([Path("run")], Path("report.html")).name
        'report.html'
    """
    files = [RunFiles(path) for path in runs]
    for run in files:
        if all(run.predictions(split) is None for split in _SPLITS):
            raise UserError(f"{run.path} has no predictions to report: run `recsys evaluate {run.path}` first.")
    extras = extras or Extras()
    first = files[0]
    write_page(
        out,
        title=" and ".join(dict.fromkeys(run.path.resolve().name for run in files)),
        kind="Run report" if len(files) == 1 else "Comparison of runs",
        lead=_lead(first),
        alerts=_alerts(files),
        tiles=[*_tiles(first), *extras.tiles],
        sections=_sections(files, extras),
    )
    return out


def _sections(runs: Sequence[RunFiles], extras: Extras) -> Iterator[Section]:
    for task in runs[0].tasks:
        yield from _task_sections(runs, task, extras)
    yield learning(runs)
    yield from served_constants(runs[0])
    yield from experts(runs[0])
    yield _table_ranks(runs[0])
    yield from _sparsity(runs[0])
    yield _how(runs)


def _lead(run: RunFiles) -> str:
    data, seed = run.config.data, run.config.seed
    return f"{run.config.name}: {len(data.features)} features, tasks {', '.join(data.tasks)}, seed {seed}."


def _tiles(run: RunFiles) -> Iterator[Tile]:
    split = next(split for split in _SPLITS if run.predictions(split) is not None)
    for task in run.tasks[:1]:
        found = run.rows(split, task)
        assert found is not None
        rows, logits_N = found
        for metric in (AUC, LOG_LOSS, CALIBRATION):
            measured = rows.measure(metric, logits_N)
            low, high = measured.interval
            yield Tile(f"{split.capitalize()} {metric.label}", figure_of(measured.value), f"{low:.4f} to {high:.4f}")
    _, rates = run.curve("train", "samples_per_s")
    if rates:
        yield Tile("Training rate", f"{np.median(rates) / 1000:,.0f}k rows/s", "median over the run")


def _alerts(runs: Sequence[RunFiles]) -> Iterator[str]:
    for run in runs:
        for router, load_TE in expert_loads(run).items():
            experts = load_TE.shape[1]
            idle = [str(expert) for expert in range(experts) if load_TE[-1, expert] < 0.1 / experts]
            if idle:
                yield (
                    f"{run.path.name}: experts {', '.join(idle)} of {router} got less than a tenth of a fair share in "
                    "the last epoch: raise model.tower.balance_weight, or use fewer experts."
                )


def _task_sections(runs: Sequence[RunFiles], task: str, extras: Extras) -> Iterator[Section]:
    splits = [split for split in _SPLITS if runs[0].predictions(split) is not None]
    metrics = headline_metrics("binary", groups=group_kinds(runs[0].config.data))
    columns, cells = [], []
    for run in runs:
        for split in splits:
            found = run.rows(split, task)
            if found is not None:
                rows, logits_N = found
                measured = (rows.measure(metric, logits_N) for metric in metrics)
                columns.append(f"{run.path.name}, {split}" if len(runs) > 1 else split)
                cells.append([f"{len(rows):,}", *(with_interval(m.value, m.interval) for m in measured)])
    names = ["rows", *(metric.label for metric in metrics)]
    lines = [Line(line) for line in zip(names, *cells, strict=True)]
    yield Section(
        f"How good: {task}",
        "Small figures are 95% intervals of a bootstrap over "
        + ("users." if runs[0].config.data.user else "rows.")
        + " Calibration is the ratio of expected to observed positives: above 1, predictions are too high.",
        [Grid(["", *columns], lines)],
        list(_quality_figures(runs, task, splits[0], extras)),
    )
    if baselines := runs[0].baselines(splits[0]):
        yield Section("Baselines", f"Other models on the {splits[0]} split.", [_baseline_grid(baselines)])
    if len(runs) > 1:
        yield _differences(runs, task, splits[0], metrics)


def _quality_figures(runs: Sequence[RunFiles], task: str, split: str, extras: Extras) -> Iterator[tuple[Markup, str]]:
    points, marks = {}, []
    for run in runs:
        found = run.rows(split, task)
        if found is None:
            continue
        rows, logits_N = found
        points[run.path.name] = reliability(rows.labels_N, logits_N[rows.kept], rows.facts.weights_N)
        measured = rows.measure(AUC, logits_N)
        marks.append(plots.Mark(run.path.name, measured.value, *measured.interval, strong=True))
    yield (
        svg(plots.reliability("Reliability", points), f"Reliability plot of {task}"),
        "Each point stands for the same number of rows, with a 95% interval. On the diagonal, both rates agree.",
    )
    found = runs[0].rows(split, task)
    assert found is not None
    rows, logits_N = found
    yield (
        svg(
            plots.score_histogram("Scores by label", rows.labels_N, expit(logits_N[rows.kept])),
            f"Histogram of predicted probability by label of {task}",
        ),
        "The further apart the two are, the higher the AUC.",
    )
    marks += [plots.Mark(name, values["auc"]) for name, values in runs[0].baselines(split).items() if "auc" in values]
    if len(marks) > 1 or extras.ceiling is not None:
        ceiling = None if extras.ceiling is None else ("best reachable", extras.ceiling)
        yield (
            svg(
                plots.scale(f"{split.capitalize()} AUC beside other models", "AUC", marks, ceiling=ceiling),
                "AUC of models",
            ),
            "Bars are 95% intervals. The best reachable AUC is that of the true probabilities."
            if ceiling
            else "Bars are 95% intervals.",
        )


def _baseline_grid(baselines: Mapping[str, Mapping[str, float]]) -> Grid:
    metrics = [m for m in headline_metrics("binary") if any(m.name in values for values in baselines.values())]
    lines = [Line([name, *(figure_of(values.get(m.name)) for m in metrics)]) for name, values in baselines.items()]
    return Grid(["Model", *(metric.label for metric in metrics)], lines)


def _differences(runs: Sequence[RunFiles], task: str, split: str, metrics: Sequence[Metric]) -> Section:
    """Each run less the first one, on the same rows."""
    base = runs[0].rows(split, task)
    assert base is not None
    rows, base_logits_N = base
    lines = []
    for run in runs[1:]:
        other = run.rows(split, task)
        if other is None or not _same_rows(base, other):
            lines.append(Line([run.path.name, *["other rows"] * len(metrics)]))
            continue
        cells = []
        for metric in metrics:
            ours, theirs = rows.measure(metric, other[1]), rows.measure(metric, base_logits_N)
            drawn = interval(ours.draws_R - theirs.draws_R)
            cells.append(signed_with_interval(ours.value - theirs.value, drawn))
        lines.append(Line([run.path.name, *cells]))
    return Section(
        f"Difference to {runs[0].path.name}: {task}",
        f"On the same {split} rows; 95% intervals of a paired bootstrap over users. They do not cover "
        "other seeds: `recsys ablate` does.",
        [Grid(["Run", *(f"Δ {metric.label}" for metric in metrics)], lines)],
    )


def _same_rows(a: tuple[TestRows, np.ndarray], b: tuple[TestRows, np.ndarray]) -> bool:
    return len(a[0]) == len(b[0]) and bool((a[0].labels_N == b[0].labels_N).all())


def _table_ranks(run: RunFiles) -> Section:
    lines = [
        Line([name, str(found.dim), figure_of(found.rank, 1), f"{found.rank / found.dim:.0%}"])
        for name, found in run.table_ranks.items()
    ]
    return Section(
        "Dimensions that tables use",
        "The effective rank of each table, whose rows count as often as training saw their values. A table that uses "
        "few of its dimensions can be narrower (model.tables.<table>.dim), or has learned little.",
        [Grid(["Table", "Width", "Effective rank", "Used"], lines)] if lines else [],
    )


def _sparsity(run: RunFiles) -> Iterator[Section]:
    """The size report, and the whole as trained beside as served; nothing where the run's data set cannot be read."""
    try:
        report = measure(run.path)
    except UserError:
        return
    whole = report.whole
    lines = [
        Line(
            [
                part.part,
                part.kind,
                f"{part.numbers:,}",
                f"{part.density:.3f}",
                byte_size(part.checkpoint_bytes),
                byte_size(part.artifact_bytes),
                f"{part.flops_before:,.0f}",
                f"{part.flops_after:,.0f}",
            ],
            "total" if part.part == "total" else "",
        )
        for part in report.parts
    ]
    columns = ["Part", "Kind", "Numbers", "Density", "Checkpoint", "Artifact", "FLOPs a row before", "after"]
    rate = NONE if whole.samples_per_s is None else f"{whole.samples_per_s:,.0f} trained"
    both = [
        Line(["AUC", _spread(whole.auc, whole.auc_interval), _spread(whole.artifact_auc, whole.artifact_auc_interval)]),
        Line(["log loss", figure_of(whole.logloss), figure_of(whole.artifact_logloss)]),
        Line(["calibration", figure_of(whole.calibration), figure_of(whole.artifact_calibration)]),
        Line(["bytes with vocabulary", byte_size(whole.checkpoint_bytes), byte_size(whole.artifact_bytes)]),
        Line(["rows per second", rate, f"{whole.scored_rows_per_s:,.0f} scored"]),
        Line(["memory", NONE, f"{byte_size(whole.mapped_bytes)} shared, {byte_size(whole.dense_bytes)} own"]),
    ]
    yield Section(
        "Sparsity",
        f"Bytes and FLOPs of every part before and after the levers. The artifact is {whole.ratio:.1f} times "
        "smaller. A lever that only writes zeros lowers density, and neither bytes nor FLOPs.",
        [Grid(["", "As trained", "As served"], both)],
        folded=[("The size report, part by part", Grid(columns, lines, texts=(0, 1)))],
    )


def _spread(value: float, bounds: tuple[float, float]) -> Markup:
    return with_interval(value, Interval(*bounds))


def _how(runs: Sequence[RunFiles]) -> Section:
    lines = []
    for run in runs:
        last = run.history.select(pl.col("step").max(), pl.col("epoch").max(), pl.col("seconds").max()).row(0)
        _, rates = run.curve("train", "samples_per_s")
        lines.append(
            Line(
                [
                    run.path.name,
                    f"{last[0]:,}",
                    str(last[1]),
                    duration(last[2]),
                    f"{np.median(rates):,.0f}" if rates else NONE,
                ]
            )
        )
    return Section(
        "How it was run",
        grids=[Grid(["Run", "Steps", "Epochs", "Time", "Rows/s"], lines)],
        listings=[(f"Resolved config of {run.path.name}", to_yaml(run.config)) for run in runs],
    )
