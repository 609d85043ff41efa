"""Damaged logs: each ends in a data set (bad rows in quarantine) or in one clear sentence, with nothing half-written.

``pytest tests/data_pipelines/logs/test_damaged_logs.py --fuzz 500`` for more cases than the few that every test run takes.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import polars.selectors as cs
import pytest

from data_pipelines.dataset.dataset import Dataset, prepare
from data_pipelines.errors import UserError
from data_pipelines.features.config import DataConfig

Rng = np.random.Generator
WRITERS: dict[str, Callable[[pl.DataFrame, Path], object]] = {
    "parquet": lambda frame, path: frame.write_parquet(path, row_group_size=200),
    "ipc": lambda frame, path: frame.write_ipc(path),
    "csv": lambda frame, path: frame.with_columns(cs.list().cast(pl.List(pl.String)).list.join("|")).write_csv(path),
    "ndjson": lambda frame, path: frame.write_ndjson(path),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize("seed", range(metafunc.config.getoption("--fuzz")))


def truncate(content: bytes, rng: Rng) -> bytes:
    return content[: rng.integers(0, len(content))]


def flip(content: bytes, rng: Rng) -> bytes:
    """Some bytes changed at random places."""
    damaged = np.frombuffer(content, np.uint8).copy()
    places = rng.integers(0, len(damaged), int(rng.integers(1, 40)))
    damaged[places] = rng.integers(0, 256, len(places))
    return damaged.tobytes()


def blank(content: bytes, rng: Rng) -> bytes:
    """A stretch of zeros, as a disk that failed leaves it."""
    start = int(rng.integers(0, len(content)))
    length = int(rng.integers(1, 400))
    return content[:start] + bytes(len(content[start : start + length])) + content[start + length :]


def cut_out(content: bytes, rng: Rng) -> bytes:
    start = int(rng.integers(0, len(content)))
    return content[:start] + content[start + int(rng.integers(1, 2000)) :]


def repeat(content: bytes, rng: Rng) -> bytes:
    return content + content[int(rng.integers(0, len(content))) :]


def garbage(content: bytes, rng: Rng) -> bytes:
    return rng.bytes(int(rng.integers(0, 300)))


BYTES = (truncate, flip, blank, cut_out, repeat, garbage)


def retype(frame: pl.DataFrame, rng: Rng) -> pl.DataFrame:
    """A column of another type than the config expects."""
    name = str(rng.choice(frame.columns))
    values: list[Any] = [[["a"], ["b", None]], [1.5, float("nan")], ["x", ""], [True, False], [2**62, -1], [None, None]]
    chosen = values[int(rng.integers(0, len(values)))]
    return frame.with_columns(pl.Series(name, [chosen[i % 2] for i in range(len(frame))], strict=False))


def drop(frame: pl.DataFrame, rng: Rng) -> pl.DataFrame:
    return frame.drop(str(rng.choice(frame.columns)))


def swap(frame: pl.DataFrame, rng: Rng) -> pl.DataFrame:
    """Two columns under each other's name."""
    first, second = rng.choice(frame.columns, 2, replace=False)
    return frame.rename({str(first): str(second), str(second): str(first)})


def spoil(frame: pl.DataFrame, rng: Rng) -> pl.DataFrame:
    """Some values of a column missing or absurd."""
    name = str(rng.choice([n for n in frame.columns if frame[n].dtype.is_numeric()]))
    bad = pl.Series(rng.random(len(frame)) < rng.choice([0.003, 0.5]))
    absurd = rng.choice([None, -1, 7, 10**17])
    return frame.with_columns(pl.when(bad).then(pl.lit(absurd)).otherwise(pl.col(name)).alias(name))


def empty(frame: pl.DataFrame, rng: Rng) -> pl.DataFrame:
    return frame.head(int(rng.integers(0, 3)))


FRAMES = (retype, drop, swap, spoil, empty)


def write_damaged(frame: pl.DataFrame, folder: Path, rng: Rng) -> Path:
    """A log of one file or three, of any format, damaged in one way or two."""
    kind = str(rng.choice(list(WRITERS)))
    parts = [frame] if rng.random() < 0.5 else [frame[:400], frame[400:800], frame[800:]]
    victim = int(rng.integers(0, len(parts)))
    if rng.random() < 0.4:
        parts[victim] = FRAMES[int(rng.integers(0, len(FRAMES)))](parts[victim], rng)
        damages = int(rng.random() < 0.3)
    else:
        damages = 1
    folder.mkdir()
    for number, part in enumerate(parts):
        path = folder / f"{number}.{kind}"
        WRITERS[kind](part, path)
        if number == victim and damages:
            content = path.read_bytes() or b"\n"
            path.write_bytes(BYTES[int(rng.integers(0, len(BYTES)))](content, rng))
    return folder if len(parts) > 1 else folder / f"0.{kind}"


def test_a_damaged_log(seed: int, tiny_log: Path, tiny_data: dict[str, Any], tmp_path: Path) -> None:
    rng = np.random.default_rng([20, seed])
    log = write_damaged(pl.read_parquet(tiny_log).head(1200), tmp_path / "log", rng)
    features = {**tiny_data["features"], "tags": {"kind": "bag", "delimiter": "|"}}
    history = {"kind": "history", "of": ["item"], "where": "click = 1", "last": 5}
    features["recent"] = history if seed % 3 == 0 else {"kind": "statistic", "measure": "count", "by": ["user"]}
    out = tmp_path / "dataset"
    try:
        config = DataConfig.model_validate({**tiny_data, "log": str(log), "features": features})
        dataset = prepare(config, out)
    except UserError as error:
        sentence = str(error)
        assert "\n" not in sentence
        assert 20 < len(sentence) < 700
        assert not out.exists()
    else:
        refused = sum(dataset.profile["refused"].values())
        assert sum(Dataset.open(out).splits.values()) == dataset.profile["rows"] - refused
    assert {path.name for path in tmp_path.iterdir()} <= {"log", "dataset"}
