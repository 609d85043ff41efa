"""A kind is one module: two kinds that the product does not know are registered here, and used from end to end."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from data_pipelines.batch import DenseSpec, SparseSpec
from data_pipelines.config.base import register
from data_pipelines.dataset.dataset import prepare
from data_pipelines.disk.by_row import ByRow, Fields, places
from data_pipelines.features.config import DataConfig
from data_pipelines.features.kinds.base import Check, Feature, FeatureConfig, Fitted, Specs
from data_pipelines.features.kinds.past import Kept, PastConfig, PastNumber
from data_pipelines.features.raw_columns import RawColumns
from data_pipelines.features.vocabulary import Table
from data_pipelines.timelines import Int64s, Keys, Timeline, find


class LengthConfig(FeatureConfig):
    """Characters of a text, divided by the most that the training split has."""

    kind: Literal["length"] = "length"
    column: str

    @classmethod
    def defaults(cls, name: str, data: Mapping[str, Any]) -> dict[str, Any]:
        return {"column": name}

    def build(self, name: str, data: DataConfig) -> "LengthFeature":
        return LengthFeature(name, self)


class LengthFeature(Feature[LengthConfig]):
    def specs(self) -> Specs:
        return Specs(dense=[DenseSpec(name=self.name, width=1)])

    def columns(self) -> frozenset[str]:
        return frozenset({self.config.column})

    def _length(self, raw: RawColumns) -> pl.Expr:
        return raw.text(self.reader, self.config.column).str.len_chars()

    def summaries(self, raw: RawColumns, sample: Any) -> dict[str, pl.Expr]:
        return {"most": self._length(raw).max()}

    def fit(self, summary: Mapping[str, Any]) -> list[float]:
        return [max(summary["most"] or 0, 1)]

    def checks(self, raw: RawColumns) -> Iterator[Check]:
        yield f"{self.config.column}: more than 20 characters", self._length(raw) > 20

    def encode(self, spec: SparseSpec | DenseSpec, raw: RawColumns, fitted: Fitted) -> list[pl.Expr]:
        (most,) = fitted.numbers[self.name]
        return [(self._length(raw) / most).fill_null(0).cast(pl.Float32).alias(self.name)]


class SinceConfig(PastConfig):
    """Log1p of the seconds since the last earlier row of the same key; 0 where there is none."""

    kind: Literal["since"] = "since"
    by: list[str]

    def build(self, name: str, data: DataConfig) -> "SinceFeature":
        return SinceFeature(name, self)


class SinceFeature(PastNumber[SinceConfig]):
    @property
    def by(self) -> tuple[str, ...]:
        return tuple(self.config.by)

    def past_columns(self, raw: RawColumns) -> list[pl.Expr]:
        return []

    @property
    def fields(self) -> Fields:
        return (("seconds", "<f8"),)

    def begin(
        self, tables: Mapping[str, Table], events: Path, records: ByRow, minutes: pl.DataFrame | None
    ) -> "SinceWorker":
        return SinceWorker(self, records)

    def gather(
        self, records: np.ndarray, rows: np.ndarray, times: np.ndarray, minutes: pl.DataFrame | None
    ) -> list[pl.Series]:
        values = np.zeros(len(rows), np.float32)
        values[places(rows, records["row"])] = np.log1p(records["seconds"])
        return [pl.Series(self.name, values)]

    def events(self, rows: pl.DataFrame) -> pl.DataFrame:
        return rows.select("key", "time")

    def condense(self, past: pl.DataFrame, latest: int) -> pl.DataFrame:
        """The last two times of each key: a row at the last one sees only the one before."""
        return past.unique().sort("key", "time").group_by("key", maintain_order=True).tail(2)

    def merge(self, old: pl.DataFrame, new: pl.DataFrame, latest: int) -> pl.DataFrame:
        return self.condense(pl.concat([old, new]), latest)

    def attach(self, kept: Kept, keys: Keys, places: Int64s, times: Int64s) -> list[pl.Series]:
        last = kept.rows.group_by("key").agg(pl.col("time").max(), before=pl.col("time").min()).sort("key")
        place, known = find(last["key"].to_numpy(), keys)
        latest, before, now = last["time"].to_numpy()[place], last["before"].to_numpy()[place], times[places]
        earlier = np.where(latest < now, latest, before)
        values = np.zeros(len(times), np.float32)
        values[places] = np.where(known & (earlier < now), np.log1p((now - earlier) / 1e6), 0)
        return [pl.Series(self.name, values)]


class SinceWorker:
    def __init__(self, feature: SinceFeature, records: ByRow) -> None:
        self._feature, self._rows = feature, records

    def add(self, rows: pl.DataFrame, line: Timeline, earlier: pl.DataFrame | None) -> pl.DataFrame:
        before = line.times[np.maximum(line.tie - 1, 0)]
        seconds = np.where(line.tie > line.first, (line.times - before) / 1e6, 0.0)
        self._rows.add(rows["row"].to_numpy(), seconds=line.in_log_order(seconds))
        return self._feature.events(rows)


@pytest.fixture
def _kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FeatureConfig, "_registered", dict(FeatureConfig._registered))
    register(LengthConfig)
    register(SinceConfig)


DATA = {
    "log": "log.parquet",
    "time": "t",
    "tasks": {"y": {"column": "y"}},
    "features": {"name": {"kind": "length"}, "gap": {"kind": "since", "by": ["user"]}},
}


@pytest.mark.usefixtures("_kinds")
def test_new_kinds_are_fitted_checked_encoded_and_remembered(tmp_path: Path) -> None:
    rows = 60
    log = pl.DataFrame(
        {
            "name": [None if i % 7 == 0 else "x" * (i % 5 + 1) for i in range(rows)],
            "user": [f"u{i % 3}" for i in range(rows)],
            "t": [i // 2 * i for i in range(rows)],
            "y": [i % 2 for i in range(rows)],
        }
    )
    bad = log.head(1).with_columns(name=pl.lit("x" * 21))
    pl.concat([log, bad]).write_parquet(tmp_path / "log.parquet")
    content = {**DATA, "log": str(tmp_path / "log.parquet"), "max_quarantined": 0.1}
    dataset = prepare(DataConfig.model_validate(content), tmp_path / "dataset")
    assert dataset.profile["refused"] == {"name: more than 20 characters": 1}

    encoded = pl.concat([dataset.frame(split).collect() for split in dataset.splits]).sort(":row")
    seen: dict[str, list[int]] = {}
    expected = []
    for user, time in log.select("user", "t").iter_rows():
        earlier = [other for other in seen.get(user, []) if other < time]
        expected.append(math.log1p(time - max(earlier)) if earlier else 0.0)
        seen.setdefault(user, []).append(time)
    assert encoded["name"].to_list() == pytest.approx([len(name or "") / 5 for name in log["name"]])
    assert encoded["gap"].to_list() == pytest.approx(expected)

    raw = dataset.raw("test")
    again = dataset.encoder.encode(raw.lazy()).collect()
    assert again["gap"].to_list() == dataset.frame("test").collect()["gap"].to_list()
    new = pl.LazyFrame({"name": ["abc"] * 2, "user": ["u0", "new"], "t": [10_000, 10_000]})
    assert dataset.state is not None
    attached = dataset.encoder.encode(dataset.state.attach(new)).collect()
    assert attached["gap"].to_list() == pytest.approx([math.log1p(10_000 - max(seen["u0"])), 0.0])


def test_an_unknown_kind_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValidationError, match=r"'length'.*does not match any of the expected tags: 'bag', 'cross'"):
        DataConfig.model_validate(DATA)


@pytest.mark.usefixtures("_kinds")
def test_a_registered_kind_keeps_the_rules_of_configs() -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        DataConfig.model_validate({**DATA, "features": {"name": {"kind": "length", "colum": "x"}}})
    with pytest.raises(ValidationError, match="a since needs the key `time`"):
        DataConfig.model_validate({**DATA, "time": None})
    config = DataConfig.model_validate(DATA)
    assert DataConfig.model_validate(config.model_dump()) == config


def test_a_kind_has_one_name_and_a_name_one_kind() -> None:
    class Nameless(FeatureConfig):
        def build(self, name: str, data: DataConfig) -> Feature[Any]:
            raise NotImplementedError

    class Number(Nameless):
        kind: Literal["number"] = "number"

    with pytest.raises(ValueError, match="needs the field `kind"):
        register(Nameless)
    with pytest.raises(ValueError, match=r"'number' is taken: it is that of data_pipelines\.features\.kinds\.number"):
        register(Number)
