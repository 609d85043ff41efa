"""The frontier of size and quality: a grid of levers, each point trained, exported, and measured as it is served.

A point is a set of overrides of the config. Points that differ only in what export does (bits, factors, pruning after
training) share one training. Trials are those of ablation studies: named by all that decides their numbers, cached,
resumable, in parallel processes.
"""

import itertools
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml

from data_pipelines.dataset.dataset import Dataset
from data_pipelines.disk.storage import new_directory
from data_pipelines.errors import UserError
from recsys.config.experiment import ExperimentConfig
from recsys.config.validation import parse_config
from recsys.config.yaml_files import override, to_yaml
from recsys.metrics import metrics
from recsys.plots.studies import Point, cost_benefit
from recsys.plots.studies import frontier as undominated
from recsys.plots.style import Draw, png, svg
from recsys.reports.pages import Grid, Line, Section, Tile, byte_size, figure_of, write_page
from recsys.trials.code import code_fingerprint
from recsys.trials.trials import Trial
from recsys.trials.workers import Workers

EXPORT_ONLY = ("low_rank", "post_pruning", "quantization")
"""Levers that change nothing while training (``quantization`` unless it is ``aware``)."""

Overrides = dict[str, Any]
"""Values by dotted key of the config."""


def grid(vary: Iterable[str], *, at_most: int | None = None, seed: int = 0) -> list[Overrides]:
    """All combinations of ``KEY=V1,V2,...``, values read as YAML; ``at_most`` of them, drawn at random, if given.

    The first point is the config as it is.

    Raises:
        UserError: An entry is not ``KEY=V1,V2,...``.
    """
    keys, values = [], []
    for entry in vary:
        key, equals, text = entry.partition("=")
        try:
            choices = yaml.safe_load(f"[{text}]")
        except yaml.YAMLError:
            choices = []
        if not equals or not key or not choices:
            raise UserError(f"--vary {entry!r} is not KEY=V1,V2,...: write sparsity.row_pruning.sparsity=0.5,0.9.")
        keys.append(key)
        values.append(choices)
    points = [dict(zip(keys, combination, strict=True)) for combination in itertools.product(*values)]
    if at_most is not None and len(points) > at_most:
        points = random.Random(seed).sample(points, at_most)
    return [{}, *(point for point in points if point)]


class Frontier:
    """All points of a search, what they cost and what they are worth.

    Args:
        config: The experiment; its seed is the first of ``seeds``.
        points: Overrides of each point; see :func:`grid`.

    Raises:
        UserError: A point's overrides are refused by the config, or the first task is not binary.
    """

    def __init__(
        self, config: ExperimentConfig, data: Dataset, workers: Workers, points: Sequence[Overrides], *, seeds: int = 1
    ) -> None:
        self.config, self._data, self._workers, self._points = config, data, workers, points
        self._task, task = next(iter(data.config.tasks.items()))
        if task.kind != "binary":
            raise UserError(f"a frontier compares AUC, and the first task {self._task!r} is {task.kind}.")
        self._configs = [_apply(config, point) for point in points]
        self._seeds = [config.seed + offset for offset in range(seeds)]
        self._runs = {(i, seed): self._training(c, seed) for i, c in enumerate(self._configs) for seed in self._seeds}
        self._looks = {key: self._look(self._configs[key[0]], run) for key, run in self._runs.items()}

    @property
    def trials(self) -> list[Trial]:
        """Every training and every export that the points need, once."""
        return list({trial.name: trial for trial in (*self._runs.values(), *self._looks.values())}.values())

    def run(self, tell: Callable[[int], None] = lambda count: None) -> None:
        """Carry out the trials that are not in the store, trainings first; ``tell`` hears of each as it ends."""
        for wanted in (self._runs, self._looks):
            self._workers.run(list(wanted.values()), lambda _: tell(1))

    def _training(self, config: ExperimentConfig, seed: int) -> Trial:
        return self._trial(config.model_copy(update={"sparsity": _training_levers(config)}), seed, keep_run=True)

    def _look(self, config: ExperimentConfig, run: Trial) -> Trial:
        return self._trial(config, run.seed, parent=run.name, change="export")

    def _trial(self, config: ExperimentConfig, seed: int, **about: Any) -> Trial:
        blocks = config.model_dump(mode="json", include={"model", "train", "sparsity", "export"})
        features = tuple(config.train.features or self._data.config.features)
        return Trial(
            config=blocks,
            features=features,
            seed=seed,
            dataset=self._data.manifest.fingerprint,
            threads=self._workers.engine.threads,
            code=code_fingerprint(),
            **about,
        )

    def table(self) -> pl.DataFrame:
        """One row a point: its overrides, means over seeds of AUC and log loss, bytes, ratio and rows/s.

        ``auc_change`` is against the first point, ``frontier`` whether no point has both fewer bytes and more AUC.
        """
        rows = [self._row(index) for index in range(len(self._points))]
        best = set(undominated([row["model_bytes"] for row in rows], [row["valid_auc"] for row in rows]))
        for index, row in enumerate(rows):
            row["auc_change"] = row["auc"] - rows[0]["auc"]
            row["frontier"] = index in best
        return pl.DataFrame(rows)

    def _row(self, index: int) -> dict[str, Any]:
        labels = {split: self._labels(split) for split in ("valid", "test") if self._data.splits.get(split)}
        figures, scores = [], []
        for seed in self._seeds:
            look, store = self._looks[index, seed], self._workers.store
            figures.append(store.figures(look))
            scores.append({split: store.logits(look, split, self._task) for split in labels})
        sizes = [figure.model_bytes or 0 for figure in figures]
        last = "test" if "test" in labels else "valid"
        first = "valid" if "valid" in labels else "test"
        aucs = [metrics.auc(labels[last], score[last]) for score in scores]
        return {
            "point": describe(self._points[index]),
            "auc": float(np.mean(aucs)),
            "auc_low": min(aucs),
            "auc_high": max(aucs),
            "valid_auc": float(np.mean([metrics.auc(labels[first], score[first]) for score in scores])),
            "logloss": float(np.mean([metrics.log_loss(labels[last], score[last]) for score in scores])),
            "model_bytes": float(np.mean(sizes)),
            "ratio": float(
                np.mean([whole / size for whole, size in zip(self._checkpoint_bytes(), sizes, strict=True)])
            ),
            "rows_per_s": float(np.mean([figure.score_rows_per_s or float("nan") for figure in figures])),
        }

    def _checkpoint_bytes(self) -> list[int]:
        """Of the config as it is, by seed: what every point is a shrinking of."""
        return [self._workers.store.figures(self._looks[0, seed]).checkpoint_bytes or 0 for seed in self._seeds]

    def _labels(self, split: str) -> np.ndarray:
        return self._data.labels(split)[:, list(self._data.config.tasks).index(self._task)]

    def choose(self, table: pl.DataFrame, *, tolerance: float, budget: int | None) -> int:
        """The smallest point within ``tolerance`` of the best valid AUC; with ``budget``, the best that fits it.

        Chosen on the valid split: test figures stay an honest estimate.
        """
        sizes, aucs = table["model_bytes"].to_numpy(), table["valid_auc"].to_numpy()
        if budget is not None:
            fits = np.flatnonzero(sizes <= budget)
            if len(fits) == 0:
                raise UserError(f"no point fits into {budget} bytes: the smallest takes {sizes.min():.0f}; vary more.")
            return int(fits[aucs[fits].argmax()])
        close = np.flatnonzero(aucs >= aucs[0] - tolerance)
        return int(close[sizes[close].argmin()]) if len(close) else int(aucs.argmax())

    def write(self, out: Path, *, tolerance: float, budget: int | None) -> dict[str, Any]:
        """Write table, plots, page and the chosen point's config into ``out``; return what to print."""
        table = self.table()
        chosen = self.choose(table, tolerance=tolerance, budget=budget)
        row = table.row(chosen, named=True)
        drawings = _drawings(table, chosen)
        with new_directory(out, "study", meta={"points": len(table)}, replace=out.exists()) as folder:
            table.write_parquet(folder / "points.parquet")
            table.write_csv(folder / "points.csv")
            (folder / "chosen.yaml").write_text(to_yaml(self._configs[chosen]))
            for name, draw in drawings.items():
                png(draw, folder / f"{name}.png")
            _write_page(folder / "frontier.html", self.config.name, table, row, drawings)
        result = {"study": out, "report": out / "frontier.html", "points": len(table), "chosen": row["point"]}
        return result | {key: row[key] for key in ("auc", "auc_change", "model_bytes", "ratio", "rows_per_s")}


def describe(point: Mapping[str, Any]) -> str:
    """A point's overrides in a few words: the last part of each key, and its value."""
    return ", ".join(f"{key.removeprefix('sparsity.')} {value}" for key, value in point.items()) or "as it is"


def _apply(config: ExperimentConfig, point: Overrides) -> ExperimentConfig:
    content = config.model_dump(mode="json")
    content["sparsity"] = {name: value for name, value in content["sparsity"].items() if value is not None}
    assignments = [
        f"{key}={yaml.safe_dump(value, default_flow_style=True).split(chr(10))[0]}" for key, value in point.items()
    ]
    return parse_config(ExperimentConfig, override(content, assignments), source="frontier")


def _training_levers(config: ExperimentConfig) -> Any:
    """The levers of ``config`` that training knows of."""
    idle: dict[str, None] = dict.fromkeys(EXPORT_ONLY)
    quantization = config.sparsity.quantization
    if quantization is not None and quantization.aware:
        del idle["quantization"]
    return config.sparsity.model_copy(update=idle)


def _drawings(table: pl.DataFrame, chosen: int) -> dict[str, Draw]:
    def points(cost: str) -> list[Point]:
        return [
            Point(
                row["point"] if row["frontier"] else "",
                row[cost],
                row["auc"],
                row["auc_low"],
                row["auc_high"],
                i == chosen,
            )
            for i, row in enumerate(table.iter_rows(named=True))
        ]

    drawings = {
        "auc-bytes": cost_benefit(
            "Quality against size", "weights and vocabulary", "test AUC", points("model_bytes"), x_text=byte_size
        )
    }
    if table["rows_per_s"].is_finite().all():
        drawings["auc-rate"] = cost_benefit(
            "Quality against speed",
            "rows scored a second",
            "test AUC",
            points("rows_per_s"),
            x_text="{:,.0f}".format,
            less_is_better=False,
        )
    return drawings


def _write_page(
    path: Path, name: str, table: pl.DataFrame, chosen: dict[str, Any], drawings: Mapping[str, Draw]
) -> None:
    rows = [
        Line(
            [
                row["point"],
                figure_of(row["auc"]),
                f"{row['auc_change']:+.4f}",
                figure_of(row["logloss"]),
                byte_size(row["model_bytes"]),
                f"{row['ratio']:.1f}",
                f"{row['rows_per_s']:,.0f}",
                "yes" if row["frontier"] else "",
            ],
            "strong" if row["point"] == chosen["point"] else "",
        )
        for row in table.sort("model_bytes").iter_rows(named=True)
    ]
    columns = ["Point", "Test AUC", "change", "Log loss", "Bytes", "times smaller", "Rows/s", "On the frontier"]
    figures = [
        (svg(draw, title), "Points that another beats in both are grey; the chosen one is orange.")
        for title, draw in drawings.items()
    ]
    write_page(
        path,
        title=name,
        kind="Frontier",
        lead=f"What size costs: {len(table)} points; bytes are those of weights and vocabularies, as served.",
        alerts=[],
        tiles=[
            Tile("Chosen", byte_size(chosen["model_bytes"]), chosen["point"]),
            Tile("Times smaller", f"{chosen['ratio']:.1f}", "than the float32 checkpoint"),
            Tile("Test AUC", figure_of(chosen["auc"]), f"{chosen['auc_change']:+.4f} against the config as it is"),
        ],
        sections=[Section("Frontier", figures=figures), Section("Points", grids=[Grid(columns, rows, texts=(0, 7))])],
    )
