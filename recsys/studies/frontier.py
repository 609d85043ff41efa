"""The frontier of size and quality: a grid of levers, each point trained, exported, and measured as it is served.

A point is a set of overrides of the config. Points that differ only at export (bits, factors, pruning after training)
share one training. Trials are those of ablation studies: named by everything that decides their results, cached,
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
from pydantic import BaseModel, ConfigDict, model_serializer

from data_pipelines.dataset.dataset import Dataset
from data_pipelines.disk.storage import new_directory
from data_pipelines.errors import UserError
from recsys.config.experiment import ExperimentConfig
from recsys.config.validation import parse_config
from recsys.config.yaml_files import override, to_yaml
from recsys.evaluation.monitor import why_undefined
from recsys.metrics.binary import log_loss
from recsys.metrics.registry import main_metric
from recsys.metrics.rows import RowFacts
from recsys.plots.studies import frontier as undominated
from recsys.plots.style import png
from recsys.studies.frontier_page import frontier_drawings, write_frontier_page
from recsys.trials.code import code_fingerprint
from recsys.trials.trials import Trial
from recsys.trials.workers import Workers
from serving.artifact.card import Value

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


class FrontierResult(BaseModel):
    """The chosen point of a frontier, as ``--json`` prints it: ``value`` and ``change`` under the metric's name.

    Attributes:
        study: The folder that was written.
        report: The page in it.
        points: How many points there are.
        failed: Why points failed, by point.
        chosen: The chosen point.
        metric: Name of the main metric of the first task.
        value: The metric of the chosen point on the test split.
        change: Its difference from the config as it is.
        model_bytes: Weights and vocabularies of the chosen point.
        ratio: Bytes of the float32 checkpoint over these.
        rows_per_s: Rows scored per second.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    study: Path
    report: Path
    points: int
    failed: dict[str, str]
    chosen: str
    metric: str
    value: Value
    change: Value
    model_bytes: Value
    ratio: Value
    rows_per_s: Value

    @model_serializer(mode="wrap")
    def _by_name(self, handler: Any) -> dict[str, Any]:
        content = handler(self)
        name, failed = content.pop("metric"), content.pop("failed")
        renamed = {
            name if key == "value" else f"{name}_change" if key == "change" else key: v for key, v in content.items()
        }
        return renamed | ({"failed": failed} if failed else {})


class Frontier:
    """All points of a search, with their cost and quality.

    Args:
        config: The experiment; its seed is the first of ``seeds``.
        points: Overrides of each point; see :func:`grid`.

    Raises:
        UserError: A point's overrides are refused by the config, or the main metric of the first task is undefined.
    """

    def __init__(
        self, config: ExperimentConfig, data: Dataset, workers: Workers, points: Sequence[Overrides], *, seeds: int = 1
    ) -> None:
        self.config, self._data, self._workers, self._points = config, data, workers, points
        self._task, task = next(iter(data.config.tasks.items()))
        self._kind, self.metric = task.kind, main_metric(task.kind)
        for split in self._splits():
            if reason := why_undefined(self.metric, self._kind, self._labels(split), self._facts(split)):
                raise UserError(
                    f"a frontier compares {self.metric.label}, which is undefined for task {self._task!r} on the "
                    f"{split} split: {reason}."
                )
        self._configs = [_apply(config, point) for point in points]
        self._seeds = [config.seed + offset for offset in range(seeds)]
        self._runs = {(i, seed): self._training(c, seed) for i, c in enumerate(self._configs) for seed in self._seeds}
        self._looks = {key: self._look(self._configs[key[0]], run) for key, run in self._runs.items()}

    @property
    def trials(self) -> list[Trial]:
        """Every training and every export that the points need, once."""
        return list({trial.name: trial for trial in (*self._runs.values(), *self._looks.values())}.values())

    def run(self, tell: Callable[[int], None] = lambda count: None) -> None:
        """Run the trials that are not in the store, trainings first; ``tell`` is called as each one ends."""
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
        """One row per point: its overrides, means over seeds of the main metric and log loss, bytes, ratio and rows/s.

        ``<metric>_change`` is the difference to the first point, ``frontier`` whether no point has both fewer bytes and
        a better metric, ``failed`` why a point has no results.

        Raises:
            UserError: The first point, which the others are compared with, failed.
        """
        rows = [self._row(index) for index in range(len(self._points))]
        if rows[0]["failed"]:
            raise UserError(f"the config as it is, which all points are compared with, failed: {rows[0]['failed']}.")
        name = self.metric.name
        sound = [index for index, row in enumerate(rows) if not row["failed"]]
        gains = [self.metric.goodness(rows[index][f"valid_{name}"]) for index in sound]
        best = {sound[i] for i in undominated([rows[index]["model_bytes"] for index in sound], gains)}
        for index, row in enumerate(rows):
            row[f"{name}_change"] = row[name] - rows[0][name]
            row["frontier"] = index in best
        return pl.DataFrame(rows, infer_schema_length=None)

    def _row(self, index: int) -> dict[str, Any]:
        name, store = self.metric.name, self._workers.store
        looks = [self._looks[index, seed] for seed in self._seeds]
        figures = [store.figures(look) for look in looks]
        failed = next((figure.failed for figure in figures if figure.failed), "")
        first, last = self._splits()[0], self._splits()[-1]
        values: dict[str, list[float]] = {first: [], last: [], f"{last} loss": []}
        for split in [] if failed else self._splits():
            scores = [store.logits(look, split, self._task) for look in looks]
            labels_N, weights_N = self._labels(split), self._data.weights(split, self._task)
            measured = (self.metric.measure(self._kind, labels_N, score_N, None, weights_N) for score_N in scores)
            values[split] = list(measured)
            values[f"{split} loss"] = [log_loss(labels_N, score_N, weights_N) for score_N in scores]
            if not np.isfinite(values[split]).all():
                failed = failed or f"its {self.metric.label} is not finite on the {split} split"
        sizes = [figure.model_bytes or 0 for figure in figures]
        ratios = [whole / size for whole, size in zip(self._checkpoint_bytes(), sizes, strict=True) if size]
        row = {
            "point": describe(self._points[index]),
            name: _mean(values[last]),
            f"{name}_low": min(values[last], default=float("nan")),
            f"{name}_high": max(values[last], default=float("nan")),
            f"valid_{name}": _mean(values[first]),
            "logloss": _mean(values[f"{last} loss"]),
            "model_bytes": _mean([] if failed else sizes),
            "ratio": _mean(ratios),
            "rows_per_s": _mean([figure.score_rows_per_s or float("nan") for figure in figures]),
            "failed": failed,
        }
        return row if self._kind == "binary" else {key: value for key, value in row.items() if key != "logloss"}

    def _splits(self) -> list[str]:
        """The splits that points are measured on: the first is for choosing, the last for reporting."""
        return [split for split in ("valid", "test") if self._data.splits.get(split)]

    def _checkpoint_bytes(self) -> list[int]:
        """Trials of the original config by seed, which every point shrinks."""
        return [self._workers.store.figures(self._looks[0, seed]).checkpoint_bytes or 0 for seed in self._seeds]

    def _facts(self, split: str) -> RowFacts:
        return RowFacts(weights_N=self._data.weights(split, self._task))

    def _labels(self, split: str) -> np.ndarray:
        return self._data.labels(split)[:, list(self._data.config.tasks).index(self._task)]

    def choose(self, table: pl.DataFrame, *, tolerance: float, budget: int | None) -> int:
        """The smallest point within ``tolerance`` of the first one; with ``budget``, the best that fits it.

        The choice is made on the valid split, so that metrics of the test split stay unbiased. Points that failed are
        never chosen.

        Raises:
            UserError: No point fits into ``budget``.
        """
        sizes = table["model_bytes"].to_numpy()
        gains = np.array([self.metric.goodness(value) for value in table[f"valid_{self.metric.name}"]])
        if budget is not None:
            fits = np.flatnonzero(sizes <= budget)
            if len(fits) == 0:
                raise UserError(
                    f"no point fits into {budget} bytes: the smallest takes {np.nanmin(sizes):.0f}; vary more."
                )
            return int(fits[gains[fits].argmax()])
        close = np.flatnonzero(gains >= gains[0] - tolerance)
        return int(close[sizes[close].argmin()])

    def write(self, out: Path, *, tolerance: float, budget: int | None) -> FrontierResult:
        """Write table, plots, page and the chosen point's config into ``out``."""
        table = self.table()
        chosen = self.choose(table, tolerance=tolerance, budget=budget)
        row = table.row(chosen, named=True)
        drawings = frontier_drawings(table, chosen, self.metric)
        with new_directory(out, "study", meta={"points": len(table)}, replace=out.exists()) as folder:
            table.write_parquet(folder / "points.parquet")
            table.write_csv(folder / "points.csv")
            (folder / "chosen.yaml").write_text(to_yaml(self._configs[chosen]))
            for name, draw in drawings.items():
                png(draw, folder / f"{name}.png")
            write_frontier_page(folder / "frontier.html", self.config.name, table, row, drawings, self.metric)
        name = self.metric.name
        return FrontierResult(
            study=out,
            report=out / "frontier.html",
            points=len(table),
            failed=dict(table.filter(pl.col("failed") != "").select("point", "failed").iter_rows()),
            chosen=row["point"],
            metric=name,
            value=row[name],
            change=row[f"{name}_change"],
            model_bytes=row["model_bytes"],
            ratio=row["ratio"],
            rows_per_s=row["rows_per_s"],
        )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


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
    """The levers of ``config`` that affect training."""
    idle: dict[str, None] = dict.fromkeys(EXPORT_ONLY)
    quantization = config.sparsity.quantization
    if quantization is not None and quantization.aware:
        del idle["quantization"]
    return config.sparsity.model_copy(update=idle)
