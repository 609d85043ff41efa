"""Trials side by side, one thread each, against the same trials one after the other with all threads.

Both ways start with their processes warm: what is measured is the trials, not the imports. The last line is JSON:
``parallel_time_ratio`` is the time side by side over the time one after the other, median of the repeats.
"""

import json
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

from benchmarks.common import in_turns, machine, spread, table
from data_pipelines.dataset.dataset import Dataset, prepare
from data_pipelines.synthetic import DemoConfig, demo_experiment, generate
from recsys.ablation.study import Study
from recsys.config.experiment import ExperimentConfig
from recsys.config.study import StudyConfig
from recsys.config.validation import parse_config
from recsys.trials.engines import processes
from recsys.trials.trials import TrialStore
from recsys.trials.workers import Workers

ROWS = 200_000
REPEATS = 3
ARMS = ("noise_id", "noise_tags")


def _experiment(folder: Path) -> ExperimentConfig:
    """Two arms, trained once each, besides the base; early stop never comes, so that both ways do the same work."""
    content = demo_experiment(str(folder / "log.parquet"))
    content["train"] = {**content["train"], "epochs": 2, "patience": 2}
    content["ablation"] = StudyConfig(seeds=1, leave_one_out=list(ARMS), selection="none").model_dump(mode="json")
    return parse_config(ExperimentConfig, content, source="benchmark")


def _seconds(config: ExperimentConfig, dataset: Path, *, jobs: int, threads: int) -> float:
    """Time of the two arms, after the base has warmed the processes up."""
    with tempfile.TemporaryDirectory() as store, processes(threads=threads, jobs=jobs) as engine:
        workers = Workers(dataset, TrialStore(Path(store)), engine)
        study = Study(config, Dataset.open(dataset, verify="sizes"), workers)
        base, *arms = study.arms
        warm = study.trials(base)[0]
        workers.run([warm.model_copy(update={"seed": warm.seed + job}) for job in range(jobs)])
        began = time.perf_counter()
        workers.run([study.trials(arm)[0] for arm in arms])
        return time.perf_counter() - began


def main() -> None:
    print(machine())
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        generate(DemoConfig(rows=ROWS), folder / "log.parquet")
        config = _experiment(folder)
        prepare(config.data, folder / "dataset")
        ways = {
            "side by side, one thread each": partial(_seconds, config, folder / "dataset", jobs=2, threads=1),
            "one after the other, two threads": partial(_seconds, config, folder / "dataset", jobs=1, threads=2),
        }
        seconds = in_turns(ways, REPEATS)
    print(table([f"two trials of {ROWS:,} rows", "seconds"], [[way, spread(times)] for way, times in seconds.items()]))
    beside, after = seconds.values()
    ratios = [ours / theirs for ours, theirs in zip(beside, after, strict=True)]
    print(json.dumps({"parallel_time_ratio": statistics.median(ratios), "ratios": ratios, "rows": ROWS}))


if __name__ == "__main__":
    main()
