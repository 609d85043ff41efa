"""What a checkpoint costs a training: written at once, and aside while training continues.

The same training without checkpoints, and with one every few steps both ways, in turns. The last line is JSON:
``hidden`` is the share of a checkpoint's time that training no longer waits for when it is written aside, median of
the rounds.
"""

import json
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import in_turns, machine, spread, table
from data_pipelines.dataset.dataset import Dataset, prepare
from data_pipelines.synthetic import DemoConfig, demo_experiment, generate
from recsys.config.experiment import ExperimentConfig
from recsys.config.validation import parse_config
from recsys.runs.checkpoints import step_name
from recsys.training.train import train

ROWS = 400_000
EVERY = 40
ROUNDS = 3
STEPS = 120


class _DoneError(Exception):
    """The steps to be timed are done."""


def _seconds(content: dict[str, Any], dataset: Dataset, **settings: Any) -> float:
    """Time of the steps after the first one; what is still being written at the end counts too."""
    config = parse_config(ExperimentConfig, content | {"train": content["train"] | settings}, source="benchmark")
    began, steps = 0.0, 0

    def count(_rows: int, _note: str) -> None:
        nonlocal began, steps
        steps += 1
        if steps == 1:
            began = time.perf_counter()
        if steps == STEPS + 1:
            raise _DoneError

    with tempfile.TemporaryDirectory() as scratch:
        try:
            train(config, dataset, Path(scratch) / "run", on_step=count)
        except _DoneError:
            return time.perf_counter() - began
    raise AssertionError(f"the log has fewer than {STEPS} batches")


def _bytes(content: dict[str, Any], dataset: Dataset) -> int:
    """Of one checkpoint."""
    content = content | {"train": content["train"] | {"checkpoint_every": 1, "keep_checkpoints": 1}}
    seen = 0
    with tempfile.TemporaryDirectory() as scratch:
        first = Path(scratch) / "run" / "checkpoints" / step_name(1)

        def measure(_rows: int, _note: str) -> None:
            nonlocal seen
            if first.exists():
                seen = sum(file.stat().st_size for file in first.iterdir())
                raise _DoneError

        try:
            train(
                parse_config(ExperimentConfig, content, source="benchmark"), dataset, first.parents[1], on_step=measure
            )
        except _DoneError:
            return seen
    raise AssertionError("no checkpoint was written")


def main() -> None:
    print(machine())
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        generate(DemoConfig.large(rows=ROWS), folder / "log.parquet")
        content = demo_experiment(str(folder / "log.parquet"))
        dataset = prepare(parse_config(ExperimentConfig, content, source="benchmark").data, folder / "dataset")
        ways = {
            "none": partial(_seconds, content, dataset, checkpoint_every=1 << 30),
            "at once": partial(_seconds, content, dataset, checkpoint_every=EVERY),
            "aside": partial(_seconds, content, dataset, checkpoint_every=EVERY, checkpoint_aside=True),
        }
        seconds = in_turns(ways, ROUNDS)
        size = _bytes(content, dataset)
    count = STEPS // EVERY
    print(f"{STEPS} steps, {count} checkpoints of {size / 1e6:.0f} MB")
    print(table(["checkpoints", "seconds"], [[way, spread(times)] for way, times in seconds.items()]))
    rounds = list(zip(*seconds.values(), strict=True))
    hidden = statistics.median(1 - (aside - none) / (at_once - none) for none, at_once, aside in rounds)
    cost = {way: statistics.median((t[i] - t[0]) / count for t in rounds) for i, way in enumerate(ways) if i}
    print(
        json.dumps({"hidden": hidden, "seconds_each": cost, "bytes": size, "step_seconds": seconds["none"][0] / STEPS})
    )


if __name__ == "__main__":
    main()
