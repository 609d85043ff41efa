"""The public logs of ``benchmarks.first``: each as one Parquet file, whole or an even sample of its rows."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.common import real_data
from data_pipelines.importers import criteo, frappe, movielens
from data_pipelines.synthetic import DemoConfig, generate


@dataclass(frozen=True)
class Log:
    """A public log.

    Attributes:
        convert: Writes the log of a folder as Parquet; a column ``split`` is its publisher's split.
        label, positive: What ``init`` is told, where it cannot guess.
    """

    data: str | None
    convert: Callable[[Path, Path], object]
    label: str | None = None
    positive: tuple[str, ...] = ()


def _census(folder: Path, log: Path) -> None:
    """The publisher's fold; every tenth row of its training part judges."""
    rows = pl.scan_parquet(folder / "census.parquet").with_row_index("row")
    valid = (pl.col("fold") != "test") & (pl.col("row") % 10 == 7)
    split = pl.when(valid).then(pl.lit("valid")).otherwise("fold").alias("split")
    rows.with_columns(split).drop("row", "fold").sink_parquet(log)


LOGS: Mapping[str, Log] = {
    "demo": Log(None, lambda _, log: generate(DemoConfig(), log)),
    "trivago": Log("trivago", lambda folder, log: _columns(pl.scan_parquet(folder / "impressions.parquet"), log)),
    "census": Log("census-income", _census, label="income_50k", positive=("' 50000+.'",)),
    "ml-1m": Log("ml-1m", movielens.convert),
    "frappe": Log("frappe", frappe.convert),
    "criteo": Log("criteo", lambda folder, log: criteo.convert(folder / "train_examples_10k.txt", log)),
    "open-bandit": Log(
        "open-bandit", lambda folder, log: _columns(pl.scan_csv(folder / "men.csv"), log), label="click"
    ),
}


def _columns(rows: pl.LazyFrame, log: Path) -> None:
    rows.sink_parquet(log)


def write_log(name: str, part: int, log: Path) -> None:
    """Write ``LOGS[name]``, or an even sample of one row in ``part``, in its order."""
    folder = Path() if LOGS[name].data is None else real_data(LOGS[name].data or "")
    assert folder is not None
    whole = log.with_name("whole.parquet")
    LOGS[name].convert(folder, whole)
    drawn_N = np.random.default_rng(0).random(pl.scan_parquet(whole).select(pl.len()).collect().item()) < 1 / part
    pl.read_parquet(whole).filter(pl.Series(drawn_N)).write_parquet(log)
    whole.unlink()
