"""Lists: what features relative to a list and losses over lists are worth, beside LightGBM's lambdarank.

All models learn from the same encoded rows of trivago's hotel lists, in the folder that ``RECSYS_DATA`` names: the
features that ``init`` writes and a few more (``MORE``). Ours are trained as ``init`` writes it, with another loss, and
stop by the NDCG of valid rows, as LightGBM does. The arm and the setting of LightGBM that are compared are those with
the best NDCG on valid rows. Metrics of lists are means over lists, and differences have an interval that holds test
rows (whole users) and, with several seeds, seeds.

Without real data only the planted truth is measured: how often intervals of inverse propensity scoring cover the true
value of a policy, and whether those of positions cover what positions were planted to add.

``python -m benchmarks.lists 3 "LightGBM lambdarank, 15 leaves;calibrated"`` measures these two alone, with three seeds.
Each result is kept in the folder that ``RECSYS_RESULTS`` names, so a stopped run resumes.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import polars as pl

from benchmarks.common import machine, real_data, table
from benchmarks.first import Measured, Results, train_one
from benchmarks.first_positives import content_of_init
from data_pipelines.dataset.dataset import Dataset, prepare
from data_pipelines.errors import UserError
from data_pipelines.profile.inspection import inspect_log
from data_pipelines.synthetic_lists import ListsConfig, draw_lists, generate_lists, lists_experiment
from recsys.config.experiment import ExperimentConfig
from recsys.config.validation import parse_config
from recsys.demo_lists import positions_covered
from recsys.evaluation.added import ADDED_FILE
from recsys.evaluation.baselines.trees import tree_columns
from recsys.evaluation.comparison import TestRows
from recsys.evaluation.evaluate import evaluate, facts_of
from recsys.metrics.arrays import Floats, run_starts
from recsys.metrics.bootstrap import Resampling
from recsys.metrics.off_policy import Decisions, estimate
from recsys.metrics.registry import get_metric
from recsys.metrics.significance import Effect, combine
from recsys.training.train import train

SEEDS = 3
METRICS = ("list_ndcg@10", "list_mrr", "list_auc", "auc", "logloss")
PEERS: Mapping[str, Mapping[str, Any]] = {
    "LightGBM binary": {"objective": "binary", "num_leaves": 15},
    "LightGBM lambdarank, 7 leaves": {"objective": "lambdarank", "num_leaves": 7, "learning_rate": 0.1},
    "LightGBM lambdarank, 15 leaves": {"objective": "lambdarank", "num_leaves": 15},
    "LightGBM lambdarank, 15 leaves, smaller steps": {
        "objective": "lambdarank",
        "num_leaves": 15,
        "learning_rate": 0.03,
    },
    "LightGBM lambdarank, 31 leaves": {"objective": "lambdarank", "num_leaves": 31},
    "LightGBM lambdarank, 63 leaves": {"objective": "lambdarank", "num_leaves": 63},
}
REPETITIONS = 100
ROUNDS = 500
"""Of LightGBM at most; it stops early by the valid split."""

MORE: Mapping[str, Any] = {
    "price_in_list": {
        "kind": "relative",
        "column": "price",
        "measures": ["rank", "share", "from_mean", "from_min", "from_median", "zscore", "count"],
    },
    "own_in_list": {"kind": "relative", "of": "count_of_user_and_item", "measures": ["rank", "zscore"]},
    "seen": {"kind": "recency", "by": ["user_id", "item"]},
    "seen_in_list": {"kind": "relative", "of": "seen", "measures": ["rank", "zscore"]},
    "place": {"kind": "id", "column": "position", "serve": 1},
}
"""Features beside those that ``init`` writes."""


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        loss: The block ``train.loss``.
        relative: Whether it reads relative features.
        term: Whether the position is a term of its own (`serve`), and not a feature among others.
    """

    loss: Mapping[str, Any]
    relative: bool = True
    term: bool = False

    def features(self, all_of: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """What it reads of the features of ``data``."""
        without = {"position" if self.term else "place"}
        if not self.relative:
            without |= {name for name, feature in all_of.items() if feature["kind"] == "relative"}
        return [name for name in all_of if name not in without]


ARMS: Mapping[str, Arm] = {
    "pointwise, no relative features": Arm({"kind": "pointwise"}, relative=False),
    "pointwise": Arm({"kind": "pointwise"}),
    "softmax": Arm({"kind": "softmax"}),
    "lambdarank": Arm({"kind": "lambdarank"}),
    "calibrated": Arm({"kind": "calibrated", "share": 0.5}),
    "calibrated, position as a term": Arm({"kind": "calibrated", "share": 0.5}, term=True),
}


def experiment(content: Mapping[str, Any], arm: Arm, seed: int) -> ExperimentConfig:
    """The config of one training: what ``init`` wrote, more features, a loss, and the order of lists to stop by."""
    features = {**content["data"]["features"], **MORE}
    training = {"features": arm.features(features), "loss": dict(arm.loss), "monitor": {"list_ndcg@10": 1}}
    blocks = {
        "data": {**content["data"], "features": features},
        "train": {**content["train"], **training},
        "seed": seed,
    }
    return parse_config(ExperimentConfig, {**content, **blocks}, source="init")


def peer_scores(dataset: Dataset, names: Sequence[str], changes: Mapping[str, Any]) -> Measured:
    """Scores of LightGBM for valid and test, stopped early by the NDCG of valid."""
    began = time.process_time()
    columns = {split: tree_columns(dataset, split, names) for split in ("train", "valid", "test")}
    sets = {}
    for split in ("train", "valid"):
        lists_N = dataset.lists(split)
        assert lists_N is not None
        starts = run_starts(lists_N)
        sizes_L = np.diff(starts, append=len(lists_N))
        sets[split] = lightgbm.Dataset(columns[split], dataset.labels(split)[:, 0], group=sizes_L)
    settings: dict[str, Any] = {"learning_rate": 0.05, "min_data_in_leaf": 50, "seed": 0, "deterministic": True}
    settings |= {"metric": "ndcg", "eval_at": [10], "num_threads": 1, "verbosity": -1, **changes}
    stop = lightgbm.early_stopping(30, verbose=False)
    booster = lightgbm.train(settings, sets["train"], ROUNDS, valid_sets=[sets["valid"]], callbacks=[stop])
    valid, test = (np.asarray(booster.predict(columns[split], raw_score=True)) for split in ("valid", "test"))
    return Measured(valid, test, (time.process_time() - began) / 60)


def difference(rows: TestRows, metric: str, ours: Sequence[Floats], theirs: Floats) -> Effect:
    """Mean over seeds of ours less theirs, with an interval that holds test rows and seeds."""
    other = rows.measure(get_metric(metric), theirs)
    measured = [rows.measure(get_metric(metric), scores_N) for scores_N in ours]
    draws_R = np.mean([one.draws_R for one in measured], axis=0) - other.draws_R
    return combine([one.value - other.value for one in measured], float(np.nanvar(draws_R)))


def on_trivago(log: Path, seeds: int, names: Sequence[str]) -> dict[str, Any]:
    """Measure these arms and peers on trivago's lists; print a table per split."""
    arms, peers = [name for name in names if name in ARMS], [name for name in names if name in PEERS]
    if not arms or not peers or len(arms) + len(peers) < len(names):
        raise UserError(f"name at least one of {'; '.join(ARMS)}, and at least one of {'; '.join(PEERS)}.")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        results = Results(Path(os.environ.get("RECSYS_RESULTS", folder / "results")))
        content = content_of_init(inspect_log(str(log)), folder / "init.yaml")
        dataset = prepare(experiment(content, ARMS["pointwise"], 0).data, folder / "dataset")
        task = dataset.schema.tasks[0]
        rows = {
            split: TestRows.of(dataset.labels(split)[:, 0], facts_of(dataset, split, task))
            for split in ("valid", "test")
        }
        found: dict[str, list[dict[str, Floats]]] = {}
        values: dict[str, dict[str, dict[str, float]]] = {split: {} for split in rows}
        for arm in (*peers, *arms):
            if arm in PEERS:
                made = [_peer(content, dataset, arm, results)]
            else:
                made = [_train(experiment(content, ARMS[arm], seed), dataset, arm, results) for seed in range(seeds)]
            found[arm] = [{"valid": run.valid, "test": run.test} for run in made]
            for split in rows:
                values[split][arm] = _mean(rows[split], split, found[arm])
                print(f"{arm}, {split}: {values[split][arm]}", file=sys.stderr, flush=True)
    best, peer = (max(names, key=lambda name: values["valid"][name]["list_ndcg@10"]) for names in (arms, peers))
    theirs = found[peer][0]["test"]
    for split in rows:
        print(f"\n{split}, {len(rows[split]):,} rows\n")
        print(table(["", *METRICS], [[arm, *(f"{v:.4f}" for v in of.values())] for arm, of in values[split].items()]))
    lines = []
    for metric in METRICS[:4]:
        effect = difference(rows["test"], metric, [run["test"] for run in found[best]], theirs)
        lines.append([metric, f"{effect.value:+.4f}", f"[{effect.low:+.4f}, {effect.high:+.4f}]"])
        if metric == "list_ndcg@10":
            limits = [effect.low, effect.high]
    print(f"\n{best} less {peer} (both the best on valid rows), test rows\n")
    print(table(["", "difference", "95% interval"], lines))
    return {
        "trivago_auc": values["test"][best]["auc"],
        "trivago_ndcg10": values["test"][best]["list_ndcg@10"],
        "lambdarank_ndcg10": values["test"][peer]["list_ndcg@10"],
        "ndcg10_difference": limits,
    }


def _train(config: ExperimentConfig, dataset: Dataset, arm: str, results: Results) -> Measured:
    settings = config.model_dump_json(exclude={"data": {"log"}})
    return results.get(f"lists/{arm}/{config.seed}", settings, partial(train_one, config, dataset))


def _peer(content: Mapping[str, Any], dataset: Dataset, peer: str, results: Results) -> Measured:
    arm = experiment(content, ARMS["pointwise"], 0)
    settings = arm.data.model_dump_json(exclude={"log"}) + json.dumps(dict(PEERS[peer]))
    names = arm.train.features or []
    return results.get(f"lists/{peer}", settings, partial(peer_scores, dataset, names, PEERS[peer]))


def _mean(rows: TestRows, split: str, runs: Sequence[Mapping[str, Floats]]) -> dict[str, float]:
    return {name: float(np.mean([rows.value(get_metric(name), run[split]) for run in runs])) for name in METRICS}


def ips_coverage() -> float:
    """In how many of 100 logs the interval of inverse propensity scoring covers the true value of the best order."""
    config, covered = ListsConfig(lists=400), 0
    for repetition in range(REPETITIONS):
        drawn = draw_lists(config, repetition=repetition)
        chosen_LK = (drawn.best == np.arange(config.size)).astype(np.float64)
        lists_N = np.arange(config.lists).repeat(config.size)
        decisions = Decisions(drawn.clicked.ravel().astype(np.float64), drawn.propensity.ravel(), chosen_LK.ravel())
        found = estimate(decisions, Resampling(None, len(lists_N), lists_N=lists_N))[1]["ips"]
        covered += found.interval.low <= drawn.value(drawn.best) <= found.interval.high
    return covered / REPETITIONS


def position_curve_covered() -> float:
    """The share of planted positions inside the interval that test rows give them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        planted = generate_lists(ListsConfig(), folder / "log.parquet")
        config = ExperimentConfig.model_validate(lists_experiment(str(folder / "log.parquet")))
        dataset = prepare(config.data, folder / "dataset")
        train(config, dataset, folder / "run")
        evaluate(folder / "run", dataset, "test", draws=0)
        return positions_covered(pl.read_parquet(folder / "run" / ADDED_FILE), planted)


def main(arguments: Sequence[str]) -> dict[str, Any]:
    """Measure and print; arguments are the number of seeds, and names of arms and peers divided by `;`."""
    print(machine())
    seeds = int(arguments[0]) if arguments else SEEDS
    names = arguments[1].split(";") if len(arguments) > 1 else [*PEERS, *ARMS]
    source = real_data("trivago")
    if source is None:
        print("RECSYS_DATA is not set: only the planted truth is measured.")
        figures = dict.fromkeys(("trivago_auc", "trivago_ndcg10", "lambdarank_ndcg10", "ndcg10_difference"))
    else:
        figures = on_trivago(source / "impressions.parquet", seeds, names)
    return {**figures, "ips_coverage": ips_coverage(), "position_curve_covered": position_curve_covered()}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:])))
