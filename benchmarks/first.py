"""Whether the config that ``init`` writes is good untouched: beside logistic regression, popularity and LightGBM.

Every available public log, whole and in subsamples of a tenth and a hundredth of its rows, goes through the steps of a
newcomer: ``init``, ``prepare``, ``train``, ``evaluate``. The baselines learn from the features that ``init`` chose;
those called raw learn from the same features, without those computed from the past. Their penalties and rounds are
chosen on valid rows, all figures are of test rows, and ours are means over seeds. The interval of a difference covers
test rows and seeds. Times are processor time over all threads, so a busy machine hardly changes them. A log of
positives only, ``online-retail``, is ranked over all items beside what each user took before
(``benchmarks/first_positives.py``).

A log with fewer than 20 positive test or valid rows is too small to tell and is left out: Open Bandit, and a hundredth
of the impressions and of the census. ``below_...`` in the JSON counts the sets on which ours is below outside the
interval.

Real data is read from the folder that ``RECSYS_DATA`` names; without it there is the demo log only. Each result is kept
in the folder that ``RECSYS_RESULTS`` names, so a stopped run resumes;
``python -m benchmarks.first --seeds 1 trivago census/10`` measures these two alone, with one seed, the second from a
tenth of its rows. ``--fit 10`` also runs ``recsys fit`` for ten minutes on the impressions and the census
(``benchmarks/first_fit.py``); with ``--seeds 0`` nothing else is measured.
"""

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import machine, table
from benchmarks.first_fit import FITTED, fit_table, measure_fits
from benchmarks.first_logs import LOGS, write_log
from benchmarks.first_positives import DATA, content_of_init, measure_retail, retail_table
from data_pipelines.dataset.dataset import Dataset, prepare
from data_pipelines.errors import UserError
from data_pipelines.features.kinds.past import PastConfig
from data_pipelines.profile.inspection import inspect_log
from recsys.config.experiment import ExperimentConfig
from recsys.config.validation import parse_config
from recsys.config.yaml_files import override
from recsys.evaluation.baselines.measure import FITS
from recsys.evaluation.evaluate import evaluate, users_of
from recsys.metrics.arrays import Floats
from recsys.metrics.binary import auc, calibration_ratio, log_loss
from recsys.metrics.significance import Effect, combine, delong
from recsys.training.train import train

SEEDS = 3
PARTS = (1, 10, 100)
"""A log is measured whole, and by every tenth and hundredth row."""

LEAST_TEST_POSITIVES = 20
"""Fewer positive test rows tell nothing."""

OURS = "init"
BASELINES = ("popularity", "linear", "linear, raw", "lightgbm", "lightgbm, raw")


def config_of(name: str, log: Path, seed: int, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """What ``init`` writes for a log, with the publisher's split where it has one."""
    profile = inspect_log(str(log), label=LOGS[name].label, positive=LOGS[name].positive)
    content = content_of_init(profile, log.with_suffix(".yaml"))
    if any(column.name == "split" for column in profile.columns):
        content["data"]["features"].pop("split", None)
        content["data"]["split"] = {"by": "column", "column": "split"}
    return parse_config(ExperimentConfig, override(content, [f"seed={seed}", *overrides]), source=f"init of {name}")


@dataclass(frozen=True)
class Measured:
    """What one training or baseline reached.

    Attributes:
        valid, test: Logits of the rows of a split.
        minutes: Processor time of training, over all threads.
    """

    valid: Floats
    test: Floats
    minutes: float


class Results:
    """Results by what made them, kept in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, key: str, settings: str, measure: Callable[[], Measured]) -> Measured:
        """The kept result, or that of ``measure``, which is kept."""
        digest = hashlib.sha256(settings.encode()).hexdigest()[:12]
        file = self.folder / f"{key.replace('/', '-').replace(', ', '-')}-{digest}.npz"
        if not file.exists():
            found = measure()
            beside = file.with_suffix(".part.npz")
            np.savez(beside, valid=found.valid, test=found.test, minutes=found.minutes)
            beside.replace(file)
        with np.load(file, allow_pickle=False) as kept:
            return Measured(kept["valid"], kept["test"], float(kept["minutes"]))


def train_one(config: ExperimentConfig, dataset: Dataset) -> Measured:
    """Train as ``config`` says, and score both splits."""
    began = time.process_time()
    with tempfile.TemporaryDirectory() as name:
        run = Path(name) / "run"
        train(config, dataset, run)
        minutes = (time.process_time() - began) / 60
        task = dataset.schema.tasks[0]
        logits = {
            split: evaluate(run, dataset, split, draws=0).predictions[f"{task}:logit"].to_numpy()
            for split in ("valid", "test")
        }
    return Measured(logits["valid"], logits["test"], minutes)


def fit_baseline(name: str, dataset: Dataset) -> Measured:
    """Fit a baseline, and score both splits."""
    began = time.process_time()
    base, _, raw = name.partition(", ")
    features = [key for key, f in dataset.config.features.items() if not isinstance(f, PastConfig)]
    fitted = FITS[base](dataset, features if raw else None)
    minutes = (time.process_time() - began) / 60
    return Measured(fitted.logits("valid"), fitted.logits("test"), minutes)


def _as_fitted(name: str, dataset: Dataset) -> str:
    """The baseline under whose name the same fit is kept: without features of the past, raw is no other than all."""
    has_past = any(isinstance(feature, PastConfig) for feature in dataset.config.features.values())
    return name if has_past else name.removesuffix(", raw")


@dataclass(frozen=True)
class Case:
    """One log or sample with everything that was measured on it."""

    name: str
    dataset: Dataset
    ours: list[Measured]
    baselines: dict[str, Measured]

    def labels(self, split: str = "test") -> Floats:
        """Of the rows of ``split``."""
        labels_N: Floats = self.dataset.labels(split)[:, 0].astype(np.float64)
        return labels_N

    def against(self, baseline: str) -> Effect:
        """Test AUC of ours less that of a baseline: test rows (whole users) and seeds in one interval."""
        logits_KN = np.stack([*(run.test for run in self.ours), self.baselines[baseline].test])
        auc_K, covariance_KK = delong(self.labels(), logits_KN, users_of(self.dataset, "test"))
        share_K = np.array([1 / len(self.ours)] * len(self.ours) + [-1])
        return combine(list(auc_K[:-1] - auc_K[-1]), float(share_K @ covariance_KK @ share_K))


def measure_case(name: str, part: int, seeds: int, results: Results, folder: Path) -> Case | None:
    """All that is measured on one in ``part`` rows of a log; ``None`` where the test rows are too few."""
    key, log = f"{name}/{part}", folder / "log.parquet"
    write_log(name, part, log)
    try:
        dataset = prepare(config_of(name, log, 0).data, folder / "dataset")
    except UserError as error:  # no positives at all
        print(f"{key}: {error}", file=sys.stderr)
        return None
    if any((dataset.labels(split)[:, 0] > 0.5).sum() < LEAST_TEST_POSITIVES for split in ("valid", "test")):
        return None
    ours = []
    for seed in range(seeds):
        config = config_of(name, log, seed)
        settings = config.model_dump_json(exclude={"data": {"log"}})
        ours.append(results.get(f"{key}/{OURS}/{seed}", settings, partial(train_one, config, dataset)))
    data = config_of(name, log, 0).data.model_dump_json(exclude={"log"})
    baselines = {
        name: results.get(f"{key}/{_as_fitted(name, dataset)}", data, partial(fit_baseline, name, dataset))
        for name in BASELINES
    }
    return Case(key.removesuffix("/1"), dataset, ours, baselines)


def _figures(case: Case) -> dict[str, Any]:
    labels_N = case.labels()
    figures: dict[str, Any] = {
        "train_rows": case.dataset.splits["train"],
        "seeds": len(case.ours),
        "test_positives": int((labels_N > 0.5).sum()),
        "auc": round(float(np.mean([auc(labels_N, run.test) for run in case.ours])), 5),
        "valid_auc": round(float(np.mean([auc(case.labels("valid"), run.valid) for run in case.ours])), 5),
        "logloss": round(float(np.mean([log_loss(labels_N, run.test) for run in case.ours])), 5),
        "calibration": round(float(np.mean([calibration_ratio(labels_N, run.test) for run in case.ours])), 3),
        "minutes": round(float(np.mean([run.minutes for run in case.ours])), 2),
    }
    for name, run in case.baselines.items():
        key, effect = _key(name), case.against(name)
        figures[f"{key}_auc"] = round(auc(labels_N, run.test), 5)
        figures[f"{key}_logloss"] = round(log_loss(labels_N, run.test), 5)
        figures[f"less_{key}"] = [round(value, 5) for value in (effect.value, effect.low, effect.high)]
    return figures


def _key(baseline: str) -> str:
    return baseline.replace(", ", "_")


def _tables(sets: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """AUC with sizes and times, log loss, and what ours has more than each baseline."""
    keys = [_key(name) for name in BASELINES]
    sizes = {name: [f"{f['train_rows']:,}", f"{f['test_positives']:,}", f"{f['seeds']}"] for name, f in sets.items()}
    for metric, title in (("auc", "test AUC"), ("logloss", "test log loss")):
        columns = [metric, *(f"{key}_{metric}" for key in keys)]
        rows = [
            [name, *sizes[name], *(f"{f[column]:.4f}" for column in columns), f"{f['minutes']:.1f}"]
            for name, f in sets.items()
        ]
        yield table([title, "train rows", "test positives", "seeds", OURS, *BASELINES, "minutes"], rows)
    rows = [[name, *(_difference(figures[f"less_{key}"]) for key in keys)] for name, figures in sets.items()]
    yield table(["test AUC of init, less", *BASELINES], rows)


def _difference(figures: Sequence[float]) -> str:
    value, low, high = figures
    return f"{value:+.4f} ({low:+.4f} to {high:+.4f})"


def _below(sets: Mapping[str, Mapping[str, Any]], *baselines: str) -> int:
    """Sets in which ours is below one of ``baselines``, outside the interval."""
    return sum(any(figures[f"less_{_key(name)}"][2] < 0 for name in baselines) for figures in sets.values())


def _asked(arguments: Sequence[str]) -> Iterator[tuple[str, int]]:
    at_hand = [name for name in LOGS if (name == "demo") == ("RECSYS_DATA" not in os.environ)]
    for argument in arguments or [f"{name}/{part}" for name in at_hand for part in PARTS]:
        if argument == DATA:
            continue
        name, _, part = argument.partition("/")
        if name not in LOGS or not (part or "1").isdigit():
            names = ", ".join([*LOGS, DATA])
            sys.exit(f"there is no log {argument!r}: name one of {names}, or a part of it, such as demo/10.")
        yield name, int(part or 1)


def main(arguments: Sequence[str] = ()) -> None:
    """Measure the logs of these names, all that are at hand if there are none."""
    parser = argparse.ArgumentParser(prog="benchmarks.first")
    parser.add_argument("logs", nargs="*", metavar="LOG[/PART]")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--fit", type=float, metavar="MINUTES", help="also run recsys fit with this budget")
    asked = parser.parse_args(arguments)
    logs = list(_asked(asked.logs))
    print(machine())
    sets: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        results = Results(Path(os.environ.get("RECSYS_RESULTS", f"{scratch}/results")))
        for number, (name, part) in enumerate(logs if asked.seeds else ()):
            folder = Path(scratch) / str(number)
            folder.mkdir()
            case = measure_case(name, part, asked.seeds, results, folder)
            if case is None:
                print(f"{name}/{part} is left out: fewer than {LEAST_TEST_POSITIVES} positive valid or test rows.")
                continue
            sets[case.name] = _figures(case)
            print(f"{case.name}: {json.dumps(sets[case.name])}", file=sys.stderr, flush=True)
            shutil.rmtree(folder)
        whole = [(name, part) for name, part in logs if asked.logs or part == 1]
        fits = measure_fits(whole, asked.fit, results.folder) if asked.fit else {}
    if sets:
        print("\n\n".join(_tables(sets)))
    retail = measure_retail(asked.seeds) if asked.seeds and DATA in (asked.logs or [DATA]) else {}
    summary: dict[str, Any] = {
        "sets": sets,
        "below_lr": _below(sets, "linear", "linear, raw"),
        "below_popularity": _below(sets, "popularity"),
        "below_lightgbm_raw": _below(sets, "lightgbm, raw"),
    }
    for name in ("trivago", "census"):
        if name in sets:
            summary[f"{name}_auc"] = sets[name]["auc"]
    if retail:
        print("\n" + retail_table(retail))
        summary |= {"retail": retail, "retail_recall20": retail["test"]["recall"]}
        summary["retail_repeats_recall20"] = retail["test"]["repeats_recall"]
    if fits:
        print("\n" + fit_table(fits))
        summary |= {"fit": fits} | {f"fit_{name}_auc": fits[name]["auc"] for name in FITTED if name in fits}
    print(json.dumps(summary))


if __name__ == "__main__":
    main(sys.argv[1:])
