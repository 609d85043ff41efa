"""How well models score on real data, and whether a mixture of experts improves them.

Frappe and MovieLens-1M: each config of ``examples/``, trained with three seeds, beside FuxiCTR's models, trained by
FuxiCTR with the same seeds on the very same encoded rows (Adam, batch 4096, early stop by valid AUC; hyperparameters in
``peers.py``), and beside LightGBM and logistic regression, which have no seed, on all that our model sees. Frappe,
MovieLens-1M and the demo log, whose segments are planted: the same config with its tower exchanged, a dense one for a
mixture of top-2 of 8 or the other way round, at equal active FLOPs. Beside the test metrics stand the size of what is
kept, our int8 artifact or a peer's checkpoint, and the rate of scoring: ours from raw rows, a peer's from encoded ones.

Early stops and the last settings were chosen on the valid split; test figures were visible while the shapes of
``ml-1m.yaml`` and of the first ``frappe.yaml`` were chosen. Without ``RECSYS_DATA`` only the demo log is measured.
``python -m benchmarks.accuracy frappe`` measures one data set alone.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import torch

from benchmarks.arrays import write_arrays
from benchmarks.common import ROOT, machine, real_data, table
from benchmarks.peers import FRAPPE_PEERS, MOVIELENS_PEERS, Peer
from data_pipelines.dataset.dataset import Dataset, prepare
from data_pipelines.importers import frappe, movielens
from data_pipelines.synthetic import DemoConfig, demo_experiment, generate
from recsys.config.experiment import ExperimentConfig
from recsys.config.validation import parse_config
from recsys.config.yaml_files import override, read_yaml
from recsys.evaluation.baselines.measure import BASELINES
from recsys.evaluation.evaluate import evaluate, users_of
from recsys.exporting.export import export_run
from recsys.exporting.size_report import size_report
from recsys.metrics.arrays import Floats
from recsys.metrics.binary import auc, log_loss
from recsys.metrics.significance import Effect, combine, delong
from recsys.runs.checkpoints import load_weights
from recsys.training.train import train
from recsys.trials.engines import processes
from serving.artifact.artifact import Artifact
from serving.batch.scorer import Scorer

SEEDS = (0, 1, 2)
SCORED_ROWS = 100_000
LOG = "log.parquet"
COLUMNS = ("mean of 3 seeds", "test AUC", "test log loss", "kFLOPs a row", "size", "rows/s, one thread")
TOWERS = {"mlp": "dense tower", "moe": "mixture"}
LEARNERS = {"lightgbm": "LightGBM", "linear": "logistic regression"}
"""Baselines that need no seed, and how the table names them."""


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
        peers: Models of FuxiCTR that learn from the same encoded rows, without the features ``own``.
        learners: Of ``LEARNERS``, on the same encoded rows.
    """

    key: str
    config: str | None
    data: str | None
    convert: Callable[[Path, Path], object]
    rival: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    peers: tuple[Peer, ...] = ()
    own: tuple[str, ...] = ()
    learners: tuple[str, ...] = ()

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
        rival=("model.context=[]", "model.tower={kind: mlp, hidden: [128, 128]}"),
        settings=("train.schedule.kind=cosine", "train.ema=0.99"),
    ),
    Task(
        "frappe",
        "frappe.yaml",
        "frappe",
        frappe.convert,
        rival=("model.tower={kind: moe, experts: 8, top_k: 2, hidden: 64, normalize: false, dropout: 0.3}",),
        peers=FRAPPE_PEERS,
        own=("pair",),
    ),
    Task("ml1m_likes", "ml-1m-likes.yaml", "ml-1m", movielens.convert, peers=MOVIELENS_PEERS),
    Task(
        "ml1m",
        "ml-1m.yaml",
        "ml-1m",
        movielens.convert,
        rival=("model.tower={kind: moe, experts: 8, top_k: 2, hidden: 72, normalize: false, dropout: 0.2}",),
        learners=tuple(LEARNERS),
    ),
)


@dataclass(frozen=True)
class Measured:
    """One seed's run.

    Attributes:
        kept_bytes: Of the artifact, or of a peer's checkpoint.
        rate: Measures rows per second on one thread.
        flops: Active ones of a row, multiplications and additions.
        logits_N: Of the test split.
    """

    auc: float
    logloss: float
    kept_bytes: int | None = None
    rate: Callable[[], float] | None = None
    flops: int | None = None
    logits_N: Floats | None = None


def _measure(config: ExperimentConfig, dataset: Path, run: Path) -> Measured:
    """Train, evaluate on the test split, and export."""
    data = Dataset.open(dataset, verify="sizes")
    train(config, data, run)
    evaluation = evaluate(run, data, "test", draws=0)
    (task, metrics), weights = next(iter(evaluation.tasks.items())), load_weights(run)
    artifact = export_run(run, run.with_suffix(".artifact"), ["sparsity.quantization.table_bits=8"])
    return Measured(
        metrics["auc"],
        metrics["logloss"],
        sum(file.stat().st_size for file in artifact.path.rglob("*") if file.is_file()),
        partial(_scoring_rate, artifact.path, Path(config.data.log)),
        size_report(weights, weights).total.flops_before,
        evaluation.predictions[f"{task}:logit"].to_numpy(),
    )


def _measure_peer(peer: Peer, arrays: Path, seed: int, dataset: Path, run: Path) -> Measured:
    run.mkdir()
    trained = peer.train(arrays, seed, run)
    labels_N = Dataset.open(dataset, verify="sizes").labels("test")[:, 0]
    metrics = auc(labels_N, trained.logits_N), log_loss(labels_N, trained.logits_N)
    return Measured(*metrics, trained.checkpoint_bytes, partial(peer.rate, arrays, seed, run))


def _measure_learner(name: str, dataset: Path) -> Measured:
    metrics = BASELINES[name](Dataset.open(dataset, verify="sizes"), "test")
    return Measured(metrics["auc"], metrics["logloss"])


def _scoring_rate(artifact: Path, log: Path) -> float:
    """Rows a second of one thread, as each worker of a batch job has."""
    torch.set_num_threads(1)
    rows = pl.read_parquet(log, n_rows=SCORED_ROWS)
    scorer = Scorer(Artifact.open(artifact))
    scorer.score(rows.head(1000))
    began = time.perf_counter()
    scorer.score(rows)
    return len(rows) / (time.perf_counter() - began)


def _arms(task: Task, folder: Path) -> tuple[dict[str, list[Measured]], Dataset]:
    """Runs of each arm by its name, one a seed, ours first: side by side, one thread each."""
    log, arrays = folder / LOG, folder / "arrays"
    dataset = prepare(task.experiment(log).data, folder / "dataset")
    if task.peers:
        write_arrays(dataset, arrays, dataset.splits, task.own)
    calls: list[tuple[str, Callable[[], Measured]]] = []
    for overrides in ((), task.rival)[: 1 + bool(task.rival)]:
        for seed in SEEDS:
            config = task.experiment(log, [*overrides, f"seed={seed}"])
            run = folder / f"run-{len(calls)}"
            calls.append((TOWERS[config.model.tower.kind], partial(_measure, config, dataset.path, run)))
    for peer in task.peers:
        for seed in SEEDS:
            run = folder / f"run-{len(calls)}"
            calls.append((peer.name, partial(_measure_peer, peer, arrays, seed, dataset.path, run)))
    calls += [(LEARNERS[name], partial(_measure_learner, name, dataset.path)) for name in task.learners]
    with processes() as engine:
        results = dict(engine.run(call for _, call in calls))
    measured: dict[str, list[Measured]] = {}
    for number, (name, _) in enumerate(calls):
        measured.setdefault(name, []).append(results[number])
    return measured, dataset


def _mixture_effect(measured: Mapping[str, Sequence[Measured]], dataset: Dataset) -> Effect:
    """AUC of the mixture less that of the dense tower: test rows (whole users) and seeds in one interval."""
    arms = [measured[TOWERS["moe"]], measured[TOWERS["mlp"]]]
    logits_KN = np.stack([run.logits_N for arm in arms for run in arm if run.logits_N is not None])
    _, covariance_KK = delong(dataset.labels("test")[:, 0], logits_KN, users_of(dataset, "test"))
    share_K = np.repeat([1, -1], len(SEEDS)) / len(SEEDS)
    differences = [moe.auc - mlp.auc for moe, mlp in zip(*arms, strict=True)]
    return combine(differences, float(share_K @ covariance_KK @ share_K))


def _mean(runs: Sequence[Measured], metric: str) -> float:
    return float(np.mean([getattr(run, metric) for run in runs]))


def _line(name: str, runs: Sequence[Measured]) -> list[str]:
    first, spread = runs[0], f" ± {statistics.stdev(run.auc for run in runs):.5f}" if len(runs) > 1 else ""
    return [
        name,
        f"{_mean(runs, 'auc'):.5f}{spread}",
        f"{_mean(runs, 'logloss'):.5f}",
        f"{first.flops / 1000:,.0f}" if first.flops else "",
        f"{_mean(runs, 'kept_bytes') / 2**20:.2f} MiB" if first.kept_bytes else "",
        f"{first.rate():,.0f}" if first.rate else "",
    ]


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
            lines += [_line(f"{task.key}, {name}", runs) for name, runs in measured.items()]
            own = next(iter(measured.values()))
            others = [runs for name, runs in measured.items() if name not in TOWERS.values()]
            best = {"": own} | ({"_peer": max(others, key=lambda runs: _mean(runs, "auc"))} if others else {})
            for who, runs in best.items():
                for metric in ("auc", "logloss"):
                    result[f"{task.key}{who}_{metric}"] = round(_mean(runs, metric), 5)
            if task.rival:
                effect = _mixture_effect(measured, dataset)
                result[f"{task.key}_mixture_gain"] = [round(v, 5) for v in (effect.value, effect.low, effect.high)]
                effects.append([task.key, f"{effect.value:+.5f}", f"{effect.low:+.5f} to {effect.high:+.5f}"])
            print(_tables(lines, effects), file=sys.stderr, flush=True)
    print(_tables(lines, effects))
    print(json.dumps(result | {"minutes": round((time.perf_counter() - began) / 60, 1)}))


if __name__ == "__main__":
    main(sys.argv[1:])
