"""What each lever of sparsity costs and gives on real data: each alone on one base model, MovieLens-1M, one seed.

Every row is trained with its lever, exported (mapped, not packed), and measured as it is served: test AUC, bytes of
weights, vocabularies and encoder, multiplications and additions per row. Their effect on rows per second is
measured by the benchmarks of zeros and of scoring.

``python -m benchmarks.levers [--scratch FOLDER]``; runs in the scratch folder are not trained again.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import machine, real_data, table
from data_pipelines.dataset.dataset import Dataset, prepare
from data_pipelines.importers import movielens
from recsys.config.experiment import ExperimentConfig
from recsys.config.validation import parse_config
from recsys.config.yaml_files import read_yaml
from recsys.exporting.measure import measure
from recsys.studies.codes import code_table
from recsys.training.train import train

_EXPERIMENT = Path(__file__).parent / "experiments" / "levers.yaml"
_WHEN = {"begin": 0.05, "end": 0.3}

TRAINED: dict[str, dict[str, Any]] = {
    "none": {},
    "row pruning, 80%": {"row_pruning": {"sparsity": 0.8, "scope": "global"} | _WHEN},
    "unit pruning, 75%": {"unit_pruning": {"sparsity": 0.75} | _WHEN},
    "weight pruning, 90%": {"weight_pruning": {"sparsity": 0.9, "scope": "global"} | _WHEN},
    "RigL, density 10%": {"dynamic_sparse": {"density": 0.1, "every": 20}},
    "fixed blocks, density 25%": {"fixed_mask": {"blocks": 4}},
    "L1": {"l1": {"dense": 1e-5, "tables": 1e-6, "every": 20}},
    "FTRL, wide part": {"ftrl": {"l1": 1e-3}},
    "group lasso, rows": {"group": {"rows": 1e-6}},
    "group lasso, dimensions and units": {"group": {"dims": 1e-5, "neurons": 1e-5}},
    "PEP, 90%": {"pep": {"sparsity": 0.9, "granularity": "dimension"}},
    "DropConnect, 10%": {"dropconnect": {"rate": 0.1}},
    "k-winners, 25%": {"k_winners": {"density": 0.25}},
    "feature gates": {"feature_gates": {"strength": 0.002}},
    "quantization-aware, int4": {"quantization": {"table_bits": 4, "dense": "int4", "aware": True}},
}
EXPORTED: dict[str, dict[str, Any]] = {
    "pruning after training, 80%": {"post_pruning": {"sparsity": 0.8}},
    "int8": {"quantization": {"table_bits": 8, "dense": "int8"}},
    "int4, clipped": {"quantization": {"table_bits": 4, "dense": "int4"}},
    "int2, clipped": {"quantization": {"table_bits": 2, "dense": "int4"}},
    "one grid, 1 RMS, packed": {"quantization": {"table_step": 1.0, "dense_step": 1.0}},
    "low rank": {"low_rank": {"energy": 0.9, "cross": 16}},
}
CODES: dict[str, dict[str, Any]] = {
    "movies as sparse codes (autoencoder)": {"method": "autoencoder"},
    "movies as sparse codes (dictionary)": {"method": "dictionary"},
}


def experiment(log: Path, levers: dict[str, Any]) -> ExperimentConfig:
    """The base model with ``levers``."""
    content = read_yaml(_EXPERIMENT)
    content["data"] = content["data"] | {"log": str(log)}
    return parse_config(ExperimentConfig, content | {"sparsity": levers}, source="levers")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--scratch", type=Path)
    scratch = arguments.parse_args().scratch or Path(tempfile.mkdtemp(prefix="levers-"))
    print(machine())
    folder = real_data("ml-1m")
    if folder is None:
        print("RECSYS_DATA is not set: levers are measured on MovieLens-1M.")
        sys.exit(2)
    scratch.mkdir(parents=True, exist_ok=True)
    log = scratch / "log.parquet"
    if not log.exists():
        movielens.convert(folder, log)
    if not (scratch / "dataset").exists():
        prepare(experiment(log, {}).data, scratch / "dataset")
    data = Dataset.open(scratch / "dataset", verify="sizes")
    figures: dict[str, dict[str, Any]] = {}
    for number, (name, levers) in enumerate((TRAINED | EXPORTED).items()):
        run = scratch / f"run-{number}" if name in TRAINED else scratch / "run-0"
        if not run.exists():
            train(experiment(log, levers), data, run)
        overrides = [f"sparsity={json.dumps(levers)}", f"export.packed={json.dumps('packed' in name)}"]
        report = measure(run, overrides=overrides)
        figures[name] = {
            "auc": report.whole.artifact_auc,
            "bytes": report.whole.artifact_bytes,
            "flops": report.total.flops_after,
        }
        print(f"{name}: {figures[name]}", flush=True)
    base = figures["none"]
    lines = [
        [
            name,
            f"{row['auc']:.4f}",
            f"{row['auc'] - base['auc']:+.4f}",
            f"{row['bytes'] / 1e3:,.0f}",
            f"{row['flops'] / 1e3:,.1f}",
        ]
        for name, row in figures.items()
    ]
    print(table(["lever", "test AUC", "change", "kB", "kFLOPs a row"], lines))
    for name, settings in CODES.items():
        coded = code_table(scratch / "run-0", scratch / "codes", "movie", **settings)
        figures[name] = coded.model_dump(include={"bytes", "table_bytes", "recall", "auc"})
        print(f"{name}: {figures[name]}", flush=True)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
