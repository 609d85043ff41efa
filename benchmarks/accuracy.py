"""How well models score on real data, and whether a mixture of experts earns its place.

Frappe and MovieLens-1M: each config of ``examples/``, trained with three seeds, beside what peers were measured to
reach on the very same files. Frappe, MovieLens-1M and the demo log, whose segments are planted: the same config with
its tower exchanged, a dense one for a mixture of top-2 of 8 or the other way round, at equal active FLOPs. Beside the
test metrics stand the int8 artifact's size and its rate of scoring.

Early stops and the last settings were chosen on the valid split; while the shapes of ``ml-1m.yaml`` and of the first
``frappe.yaml`` were sought, test figures were on screen. Peers stand with what they reached on these very files before,
one seed each, not in this run: FuxiCTR 2.3.10 with its leaderboard's hyperparameters, Adam, batch 4096 and early stop
by valid AUC (on MovieLens with the best of three embedding regularisers), LightGBM on 25 point-in-time columns,
logistic regression on the bags. Without ``RECSYS_DATA`` there is the demo log only. One data set alone is measured by
``python -m benchmarks.accuracy frappe``.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import torch

from benchmarks.common import ROOT, machine, real_data, table
from data_pipelines.dataset import Dataset, prepare
from data_pipelines.importers import frappe, movielens
from data_pipelines.synthetic import DemoConfig, demo_experiment, generate
from recsys.checkpoints import load_weights
from recsys.config import ExperimentConfig, override, parse_config, read_yaml
from recsys.engines import processes
from recsys.evaluation import evaluate, users_of
from recsys.exporting import export_run
from recsys.ledger import ledger, total
from recsys.significance import Effect, combine, delong
from recsys.training import train
from serving.artifact import Artifact
from serving.scorer import Scorer

SEEDS = (0, 1, 2)
SCORED_ROWS = 100_000
LOG = "log.parquet"
COLUMNS = ("mean of 3 seeds", "test AUC", "test log loss", "kFLOPs a row", "artifact", "rows/s, one thread")

Peers = Mapping[str, tuple[float, float | None]]
"""Test AUC and log loss of others on these very files, one seed each."""


def _demo(_source: Path, log: Path) -> object:
    return generate(DemoConfig(), log)


@dataclass(frozen=True)
class Task:
    """One config on one data set.

    Attributes:
        config: In ``examples/``; the demo's own where absent.
        data: The folder below ``RECSYS_DATA``, and ``convert`` what turns it into a log.
        rival: Overrides that exchange the tower for one of the other kind with as many active FLOPs; none where empty.
        settings: Overrides of both arms.
    """

    key: str
    config: str | None
    data: str | None
    convert: Callable[[Path, Path], object]
    peers: Peers
    rival: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()

    def experiment(self, log: Path, overrides: Sequence[str] = ()) -> ExperimentConfig:
        """The config of one arm, reading ``log``."""
        content = demo_experiment(str(log)) if self.config is None else read_yaml(ROOT / "examples" / self.config)
        return parse_config(
            ExperimentConfig,
            override(content, [f"data.log={log}", *self.settings, *overrides]),
            source=self.config or self.key,
        )


TASKS = (
    Task(
        "demo",
        None,
        None,
        _demo,
        {},
        ("model.context=[]", "model.tower={kind: mlp, hidden: [128, 128]}"),
        ("train.schedule.kind=cosine", "train.ema=0.99"),
    ),
    Task(
        "frappe",
        "frappe.yaml",
        "frappe",
        frappe.convert,
        {
            "FuxiCTR FinalNet": (0.98511, 0.13331),
            "FuxiCTR FinalMLP": (0.98458, 0.15363),
            "FuxiCTR DCNv2": (0.98434, 0.15580),
        },
        ("model.tower={kind: moe, experts: 8, top_k: 2, hidden: 44, shared: true, dropout: 0.3}",),
    ),
    Task(
        "ml1m_likes",
        "ml-1m-likes.yaml",
        "ml-1m",
        movielens.convert,
        {"FuxiCTR DIN, tuned": (0.7827, 0.5674), "FuxiCTR DCNv2, tuned": (0.7808, 0.5723)},
    ),
    Task(
        "ml1m",
        "ml-1m.yaml",
        "ml-1m",
        movielens.convert,
        {"LightGBM on 25 statistics": (0.7941, 0.5452), "logistic regression": (0.7430, 0.5989)},
        ("model.tower={kind: moe, experts: 8, top_k: 2, hidden: 48, shared: true, dropout: 0.2}",),
    ),
)


@dataclass(frozen=True)
class Measured:
    """One seed's run, and its artifact.

    Attributes:
        flops: Active ones of a row, multiplications and additions.
        logits_N: Of the test split.
    """

    auc: float
    logloss: float
    flops: int
    artifact: Path
    logits_N: np.ndarray

    def artifact_bytes(self) -> int:
        return sum(file.stat().st_size for file in self.artifact.rglob("*") if file.is_file())


def _measure(config: ExperimentConfig, dataset: Path, run: Path) -> Measured:
    """Train, evaluate on the test split, and export."""
    data = Dataset.open(dataset, verify="sizes")
    train(config, data, run)
    evaluation = evaluate(run, data, "test", draws=0)
    (task, metrics), weights = next(iter(evaluation.tasks.items())), load_weights(run)
    artifact = export_run(run, run.with_suffix(".artifact"), ["sparsity.quantization.table_bits=8"])
    flops = total(ledger(weights, weights)).flops_before
    logits_N = evaluation.predictions[f"{task}:logit"].to_numpy()
    return Measured(metrics["auc"], metrics["logloss"], flops, artifact.path, logits_N)


def _scoring_rate(artifact: Path, rows: pl.DataFrame) -> float:
    """Rows a second of one thread, as each worker of a batch job has."""
    torch.set_num_threads(1)
    scorer = Scorer(Artifact.open(artifact))
    scorer.score(rows.head(1000))
    began = time.perf_counter()
    scorer.score(rows)
    return len(rows) / (time.perf_counter() - began)


def _arms(task: Task, folder: Path) -> tuple[dict[str, list[Measured]], Dataset]:
    """Runs of each arm, by the kind of its tower, one a seed: side by side, one thread each."""
    log = folder / LOG
    kinds = {task.experiment(log, arm).model.tower.kind: arm for arm in ((), task.rival)[: 1 + bool(task.rival)]}
    dataset = prepare(task.experiment(log).data, folder / "dataset")
    runs = [(kind, seed) for kind in kinds for seed in SEEDS]
    configs = [task.experiment(log, [*kinds[kind], f"seed={seed}"]) for kind, seed in runs]
    with processes() as engine:
        calls = (partial(_measure, config, dataset.path, folder / f"run-{i}") for i, config in enumerate(configs))
        results = dict(engine.run(calls))
    measured: dict[str, list[Measured]] = {kind: [] for kind in kinds}
    for number, (kind, _) in enumerate(runs):
        measured[kind].append(results[number])
    return measured, dataset


def _mixture_effect(measured: Mapping[str, Sequence[Measured]], dataset: Dataset) -> Effect:
    """AUC of the mixture less that of the dense tower: test rows (whole users) and seeds in one interval."""
    arms = [measured["moe"], measured["mlp"]]
    logits_KN = np.stack([run.logits_N for arm in arms for run in arm])
    _, covariance_KK = delong(dataset.labels("test")[:, 0], logits_KN, users_of(dataset, "test"))
    share_K = np.repeat([1, -1], len(SEEDS)) / len(SEEDS)
    differences = [moe.auc - mlp.auc for moe, mlp in zip(*arms, strict=True)]
    return combine(differences, float(share_K @ covariance_KK @ share_K))


def _lines(task: Task, measured: Mapping[str, Sequence[Measured]], rows: pl.DataFrame) -> Iterator[list[str]]:
    for kind, runs in measured.items():
        aucs = [run.auc for run in runs]
        yield [
            f"{task.key}, {'mixture' if kind == 'moe' else 'dense tower'}",
            f"{statistics.mean(aucs):.5f} ± {statistics.stdev(aucs):.5f}",
            f"{statistics.mean(run.logloss for run in runs):.5f}",
            f"{runs[0].flops / 1000:,.0f}",
            f"{statistics.mean(run.artifact_bytes() for run in runs) / 2**20:.2f} MiB",
            f"{_scoring_rate(runs[0].artifact, rows):,.0f}",
        ]
    for peer, (auc, logloss) in task.peers.items():
        yield [f"{task.key}, {peer}", f"{auc:.5f}", f"{logloss:.5f}" if logloss else "", "", "", ""]


def _tables(lines: Sequence[Sequence[str]], effects: Sequence[Sequence[str]]) -> str:
    gains = table(["mixture less dense tower", "test AUC", "95% interval"], effects)
    return f"{table(COLUMNS, lines)}\n\nAt equal active FLOPs, test users and seeds in one interval:\n\n{gains}"


def main(keys: Sequence[str] = ()) -> None:
    """Measure the tasks of these keys, all if there are none."""
    print(machine())
    began = time.perf_counter()
    lines: list[list[str]] = []
    effects: list[list[str]] = []
    result: dict[str, object] = {}
    for task in (task for task in TASKS if not keys or task.key in keys):
        source = real_data(task.data) if task.data else Path()
        if source is None:
            print(f"{task.key} is left out: RECSYS_DATA is not set.")
            continue
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            task.convert(source, folder / LOG)
            measured, dataset = _arms(task, folder)
            lines += _lines(task, measured, pl.read_parquet(folder / LOG, n_rows=SCORED_ROWS))
            own = next(iter(measured.values()))
            for metric in ("auc", "logloss"):
                result[f"{task.key}_{metric}"] = round(statistics.mean(getattr(run, metric) for run in own), 5)
            if task.rival:
                effect = _mixture_effect(measured, dataset)
                result[f"{task.key}_mixture_gain"] = [round(v, 5) for v in (effect.value, effect.low, effect.high)]
                effects.append([task.key, f"{effect.value:+.5f}", f"{effect.low:+.5f} to {effect.high:+.5f}"])
            print(_tables(lines, effects), file=sys.stderr, flush=True)
    print(_tables(lines, effects))
    print(json.dumps(result | {"minutes": round((time.perf_counter() - began) / 60, 1)}))


if __name__ == "__main__":
    main(sys.argv[1:])
