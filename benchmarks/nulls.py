"""How often a study finds what is not there: forty features that are shuffled copies of a real one, left out in turn.

Each copy has the real feature's values in random rows, so leaving it out has no effect but chance. The last line is
JSON: ``flagged`` of ``nulls`` arms are significant after correction, ``flagged_uncorrected`` before (5% are expected).
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.common import machine, table
from data_pipelines.dataset.dataset import prepare
from data_pipelines.synthetic import DemoConfig, demo_experiment, generate
from recsys.ablation.study import Study
from recsys.config.experiment import ExperimentConfig
from recsys.config.study import StudyConfig
from recsys.config.validation import parse_config
from recsys.trials.engines import processes
from recsys.trials.trials import TrialStore
from recsys.trials.workers import Workers

ROWS = 60_000
NULLS = 40
LEVEL = 0.05


def _log(folder: Path) -> Path:
    """A demo log with shuffled copies of ``surface`` beside it."""
    generate(DemoConfig(rows=ROWS), folder / "demo.parquet")
    frame, rng = pl.read_parquet(folder / "demo.parquet"), np.random.default_rng(0)
    surface = frame["surface"].to_numpy()
    copies = [pl.Series(f"copy_{copy:02}", rng.permutation(surface)) for copy in range(NULLS)]
    frame.with_columns(copies).write_parquet(folder / "log.parquet")
    return folder / "log.parquet"


def _experiment(log: Path) -> ExperimentConfig:
    content = demo_experiment(str(log))
    nulls = [f"copy_{copy:02}" for copy in range(NULLS)]
    real = {name: content["data"]["features"][name] for name in ("item", "surface", "hour", "tags", "price")}
    content["data"] |= {"features": real | {name: {"kind": "id"} for name in nulls}, "groups": {}}
    content["model"] = {"dim": 4, "interaction": {"kind": "none"}, "tower": {"kind": "mlp", "hidden": [64]}}
    content["train"] |= {"epochs": 2, "patience": 2}
    study = StudyConfig(leave_one_out=nulls, selection="none", slices={}, metrics=["auc"])
    content["ablation"] = study.model_dump(mode="json")
    return parse_config(ExperimentConfig, content, source="benchmark")


def main() -> None:
    print(machine())
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        config = _experiment(_log(folder))
        dataset = prepare(config.data, folder / "dataset")
        with processes() as engine:
            study = Study(config, dataset, Workers(folder / "dataset", TrialStore(folder / "trials"), engine))
            study.run()
        effects = study.effects()
    flagged = effects.filter(pl.col("p_corrected") < LEVEL)
    uncorrected = effects.filter(pl.col("p_value") < LEVEL)
    widest = effects.select(pl.col("effect").abs().max()).item()
    print(
        table(
            ["null arms", "p < 0.05", "after Holm", "largest effect on AUC"],
            [[str(len(effects)), str(len(uncorrected)), str(len(flagged)), f"{widest:.4f}"]],
        )
    )
    figures = {"nulls": len(effects), "flagged": len(flagged), "flagged_uncorrected": len(uncorrected)}
    print(json.dumps(figures | {"seeds": config.ablation.seeds, "rows": ROWS}))


if __name__ == "__main__":
    main()
