"""How fast and how small preparing is: beside FuxiCTR, beside reading and writing alone, and at ten times the rows.

The log is a demo log with ids as text: three ids (one of 200,000 users), a bag of tags, a number. The floor is Polars'
streaming engine with its defaults, copying the same columns from Parquet to Arrow IPC without encoding. Every
measurement is a process of its own, timed after its imports; candidates take turns, and medians are compared. The
minimum of a history is the work that every implementation must do: read its columns, sort rows by user and time, count
events, and write eight bytes per row; no event is encoded or kept. It is timed after a prepare in the same process. The
loader is measured alone, and by how much it slows down a trainer, compared with batches that are all in memory: runs
alternate, and the figure is the median ratio of neighbouring runs.

``python -m benchmarks.prepare --rows 1000000 10000000 50000000`` for more sizes than the two by default.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.common import in_turns, machine, peak_rss_bytes, peer_python, spread, table
from data_pipelines.dataset.dataset import Dataset, prepare
from data_pipelines.disk.storage import sync
from data_pipelines.features.config import DataConfig
from data_pipelines.hashing import key_of
from data_pipelines.runtime import ENVIRONMENT
from data_pipelines.synthetic import DemoConfig, generate
from data_pipelines.timelines import Timeline, running

COLUMNS = ("timestamp", "user_id", "item_id", "surface", "tags", "price", "clicked")
HISTORY = {"recent": {"kind": "history", "of": ["item"], "where": "clicked = 1", "last": 200, "entity": "user_id"}}
PEERS = {"FuxiCTR": "ray", "FuxiCTR without Ray": "loop"}
_PEER = Path(__file__).with_name("fuxictr_prepare.py")


def data_config(log: Path, *, history: bool) -> DataConfig:
    features = {
        "user": {"kind": "id", "column": "user_id"},
        "item": {"kind": "id", "column": "item_id"},
        "surface": {"kind": "id"},
        "tags": {"kind": "bag"},
        "price": {"kind": "number", "transform": "standardize"},
    }
    return DataConfig.model_validate(
        {
            "log": str(log),
            "time": "timestamp",
            "tasks": {"click": {"column": "clicked"}},
            "split": {"by": "time", "valid": 0.1, "test": 0.1},
            "features": features | (HISTORY if history else {}),
        }
    )


def write_log(rows: int, folder: Path) -> Path:
    """The log, in row groups of one size whatever its length."""
    raw, log = folder / "raw.parquet", folder / "log.parquet"
    generate(DemoConfig(rows=rows, users=200_000, items=50_000), raw)
    ids = (pl.format(name + "-{}", f"{name}_id").alias(f"{name}_id") for name in ("user", "item"))
    pl.scan_parquet(raw).with_columns(*ids).select(COLUMNS).sink_parquet(log, row_group_size=1 << 17)
    raw.unlink()
    return log


def write_for_peer(log: Path, folder: Path) -> None:
    """The same rows as FuxiCTR wants them: three files, lists as text."""
    frame = pl.read_parquet(log, columns=list(COLUMNS[1:])).with_columns(pl.col("tags").list.join("^"))
    train, valid = int(len(frame) * 0.8), int(len(frame) * 0.9)
    for name, part in (("train", frame[:train]), ("valid", frame[train:valid]), ("test", frame[valid:])):
        part.write_parquet(folder / f"{name}.parquet")


def run_floor(log: Path, out: Path) -> float:
    for name in ENVIRONMENT:
        os.environ.pop(name, None)
    return seconds_of(lambda: pl.scan_parquet(log).select(COLUMNS).sink_ipc(out))


def run_prepare(log: Path, out: Path, *, history: bool) -> float:
    return seconds_of(lambda: prepare(data_config(log, history=history), out))


def run_least_history(log: Path, out: Path) -> float:
    def work() -> None:
        key, time, event = key_of([pl.col("user_id")]), pl.col("timestamp").dt.epoch("us"), pl.col("clicked") == 1
        rows = pl.scan_parquet(log).select(key=key, time=time, event=event).collect(engine="streaming")
        line = Timeline.of(rows["key"].to_numpy(), rows["time"].to_numpy())
        before = running(rows["event"].to_numpy()[line.order])
        stop = before[line.tie]
        length = np.minimum(stop - before[line.first], 200)
        np.stack([line.in_log_order(part.astype(np.uint32)) for part in (stop - length, length)]).tofile(out / "slices")
        sync(out / "slices")

    prepare(data_config(log, history=False), out)
    return seconds_of(work)


def seconds_of(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


TASKS: dict[str, Callable[[Path, Path], float]] = {
    "floor": run_floor,
    "ours": partial(run_prepare, history=False),
    "ours, history of 200": partial(run_prepare, history=True),
    "the least of a history": run_least_history,
}


def in_process(command: Sequence[str | Path]) -> dict[str, float]:
    """What the last line of a command says."""
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(log: Path, rounds: int, names: Sequence[str], *, peer: bool) -> dict[str, list[dict[str, float]]]:
    """Seconds and peak memory of the named tasks, round after round."""
    results: dict[str, list[dict[str, float]]] = {}

    def run(name: str) -> float:
        with tempfile.TemporaryDirectory(dir=log.parent) as folder:
            if name in PEERS:
                command: list[str | Path] = [peer_python("fuxictr"), _PEER, PEERS[name], log.parent, folder]
            else:
                command = [sys.executable, "-m", "benchmarks.prepare", "--task", name, str(log), f"{folder}/out"]
            result = in_process(command)
        results.setdefault(name, []).append(result)
        return result["seconds"]

    if peer:
        write_for_peer(log, log.parent)
        names = [*names, *PEERS]
    in_turns({name: partial(run, name) for name in names}, rounds)
    return results


def history_bytes_per_row(log: Path, rows: int) -> float:
    """What a history of the last 200 adds to a row of the splits on disk (events lie apart, once per event)."""

    def split_bytes(dataset: Dataset) -> int:
        return sum(entry.bytes for name, entry in dataset.manifest.files.items() if name.startswith("splits/"))

    with tempfile.TemporaryDirectory(dir=log.parent) as folder:
        made = [prepare(data_config(log, history=history), Path(folder, str(history))) for history in (False, True)]
        return (split_bytes(made[1]) - split_bytes(made[0])) / rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-peer", action="store_true", help="leave FuxiCTR out")
    parser.add_argument("--task", nargs=3, metavar=("NAME", "LOG", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        run_task(options.task[0], Path(options.task[1]), Path(options.task[2]))
        return
    # Here, so that the processes whose memory is measured hold no trainer.
    from benchmarks.loading import measure_loader

    print(machine())
    seconds: dict[tuple[int, str], float] = {}
    peak: dict[tuple[int, str], float] = {}
    lines = []
    with tempfile.TemporaryDirectory() as scratch:
        for rows in options.rows:
            folder = Path(scratch, str(rows))
            folder.mkdir()
            log = write_log(rows, folder)
            first = rows == options.rows[0]
            names = [name for name in TASKS if first or "history" not in name]
            results = measure(log, options.rounds, names, peer=first and not options.no_peer)
            for name, measured in results.items():
                times = [result["seconds"] for result in measured]
                seconds[rows, name] = statistics.median(times)
                peak[rows, name] = statistics.median(result["peak_rss_bytes"] for result in measured)
                rate, memory = rows / seconds[rows, name], peak[rows, name] / 2**20
                lines.append([name, f"{rows:,}", spread(times), f"{rate:,.0f}", f"{memory:,.0f}"])
            if first:
                added_bytes = history_bytes_per_row(log, rows)
            log.unlink()
        rates = measure_loader(Path(scratch), options.rounds)
    print(table(["prepare", "rows", "seconds", "rows/s", "peak MiB"], lines))
    print()
    print(table(["loader, 26 ids, batch 4096, one thread", "rows/s"], [[n, spread(r)] for n, r in rates.items()]))
    small, large = options.rows[0], options.rows[-1]
    ours = seconds[small, "ours"]
    figures = {
        "rows_per_s": small / ours,
        "peak_rss_bytes": peak[small, "ours"],
        "vs_fuxictr": None if options.no_peer else seconds[small, "FuxiCTR"] / ours,
        "vs_fuxictr_without_ray": None if options.no_peer else seconds[small, "FuxiCTR without Ray"] / ours,
        "vs_scan_floor": ours / seconds[small, "floor"],
        "loader_rows_per_s": statistics.median(rates["alone"]),
        "loader_vs_trainer": statistics.median(
            waiting / ready
            for waiting, ready in zip(rates["training"], rates["training, batches in memory"], strict=True)
        ),
        "history_time_ratio": seconds[small, "ours, history of 200"] / ours,
        "least_history_time_share": seconds[small, "the least of a history"] / ours,
        "history_bytes_per_row": added_bytes,
        "rows_ratio": large / small,
        "time_ratio": seconds[large, "ours"] / ours,
        "peak_rss_ratio": peak[large, "ours"] / peak[small, "ours"],
        "vs_scan_floor_at_most_rows": seconds[large, "ours"] / seconds[large, "floor"],
    }
    print(json.dumps({name: value if value is None else round(value, 3) for name, value in figures.items()}))


def run_task(name: str, log: Path, out: Path) -> None:
    """One measurement, in a process of its own: prints its seconds and peak memory."""
    seconds = TASKS[name](log, out)
    print(json.dumps({"seconds": seconds, "peak_rss_bytes": peak_rss_bytes()}))


if __name__ == "__main__":
    main()
