"""Lists whose truth is known: how well a model with and one without positions recover it, and an off-policy estimate.

Letters: L lists, K rows of a list.
"""

from pathlib import Path

import numpy as np
import polars as pl
import yaml
from pydantic import BaseModel, ConfigDict

from data_pipelines.dataset.dataset import Dataset, prepare
from data_pipelines.disk.storage import write_file
from data_pipelines.synthetic_lists import ListsConfig, PlantedLists, generate_lists, lists_experiment
from recsys.config.experiment import load_config
from recsys.demo import Announce, Clock, clear
from recsys.evaluation.added import ADDED_FILE
from recsys.evaluation.evaluate import evaluate
from recsys.evaluation.logged_rows import LoggedRows
from recsys.evaluation.off_policy import PolicyValue, evaluate_off_policy
from recsys.metrics.arrays import Floats
from recsys.reports.report import write_report
from recsys.training.train import train

TASK = "click"


class ListsDemoResult(BaseModel):
    """What a demo of lists measured on its test lists, as ``recsys demo --lists --json`` prints it.

    Attributes:
        pairs_right: The share of pairs of rows of a list that the model with positions orders as their true relevance.
        pairs_right_without_positions: The same of the model that does not know positions.
        positions_covered: The share of positions whose planted effect is inside the measured 95% interval.
        logged_value: Expected clicks per row of the logged lists, from the truth.
        policy_value: The same if the model with positions orders the lists.
        estimates: What off-policy evaluation estimates for ``policy_value`` from the log alone.
        report: The page.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    pairs_right: float
    pairs_right_without_positions: float
    positions_covered: float
    logged_value: float
    policy_value: float
    estimates: dict[str, PolicyValue]
    report: Path


def run_lists_demo(out: Path, *, rows: int, seed: int, announce: Announce) -> ListsDemoResult:
    """Generate lists, train with and without their positions, and compare both with the truth.

    An ``out`` that an earlier demo wrote is replaced.

    Raises:
        UserError: ``out`` holds something else.
    """
    clear(out)
    clock = Clock(announce)
    shape = ListsConfig(seed=seed)
    shape = shape.model_copy(update={"lists": rows // shape.size})
    planted = generate_lists(shape, out / "log.parquet")
    clock.done(f"generated {shape.lists:,} lists of {shape.size} rows with a planted truth")
    content = lists_experiment(str(out / "log.parquet")) | {"seed": seed}
    write_file(out / "config.yaml", yaml.safe_dump(content, sort_keys=False))
    known = [f"train.features={[name for name in content['data']['features'] if name != 'position']}"]
    runs = {"run": load_config(out / "config.yaml"), "without-positions": load_config(out / "config.yaml", known)}
    dataset = prepare(runs["run"].data, out / "dataset")
    clock.done("prepared the data set")
    for name, config in runs.items():
        train(config, dataset, out / name)
        evaluate(out / name, dataset, "test")
        clock.done(f"trained and evaluated {name}")
    scores = {name: _in_lists(_scores(out / name, dataset), shape.size) for name in runs}
    truth_LK = _in_lists(_truth(out, dataset), shape.size)
    found = evaluate_off_policy(out / "run", dataset, runs["run"])
    clock.done("estimated what the model's order would earn")
    report = write_report([out / "run"], out / "report.html")
    clock.done("wrote the report")
    return ListsDemoResult(
        pairs_right=pairs_right(scores["run"], truth_LK),
        pairs_right_without_positions=pairs_right(scores["without-positions"], truth_LK),
        positions_covered=positions_covered(pl.read_parquet(out / "run" / ADDED_FILE), planted),
        logged_value=_value(truth_LK, planted),
        policy_value=_value(np.take_along_axis(truth_LK, np.argsort(-scores["run"], axis=1), axis=1), planted),
        estimates=found.estimates,
        report=report,
    )


def pairs_right(scores_LK: Floats, truth_LK: Floats) -> float:
    """The share of pairs of rows of one list that scores order as the truth does."""
    better_LKK = truth_LK[:, :, None] > truth_LK[:, None, :]
    return float((scores_LK[:, :, None] > scores_LK[:, None, :])[better_LKK].mean())


def positions_covered(added: pl.DataFrame, planted: PlantedLists) -> float:
    """The share of positions from the second on whose planted effect is inside the measured interval."""
    shown = added.filter(pl.col("feature") == "position", pl.col("value") != "1")
    effect_K = np.array(planted.positions)[shown["value"].cast(pl.Int64).to_numpy() - 1]
    low_K, high_K = (shown[name].cast(pl.Float64).to_numpy() for name in ("low", "high"))
    return float(((low_K <= effect_K) & (effect_K <= high_K)).mean())


def _scores(run: Path, dataset: Dataset) -> Floats:
    """Of the test rows, as they would be served."""
    rows = LoggedRows.read(run, dataset, "test", TASK)
    return rows.scores(rows.frame)


def _truth(out: Path, dataset: Dataset) -> Floats:
    """The true relevance of the test rows."""
    keys = ["query", "item"]
    truth = pl.read_parquet(out / "truth.parquet")
    return dataset.keys("test").join(truth, on=keys, how="left", maintain_order="left")["relevance"].to_numpy()


def _in_lists(values_N: Floats, size: int) -> Floats:
    """(L, K) values of rows, which a data set keeps list by list in the order of the log."""
    return values_N.reshape(-1, size)


def _value(relevance_LK: Floats, planted: PlantedLists) -> float:
    """Expected clicks per row of lists in this order."""
    return float((1 / (1 + np.exp(-(relevance_LK + np.array(planted.positions))))).mean())
