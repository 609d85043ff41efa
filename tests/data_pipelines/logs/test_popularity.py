"""Popularity at the time of a row: from earlier periods only, and as often as log_q says."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from data_pipelines.config.learning import Sampling
from data_pipelines.dataset.dataset import prepare
from data_pipelines.dataset.loader import Loader
from data_pipelines.errors import UserError
from data_pipelines.features.config import DataConfig
from data_pipelines.logs.popularity import Popularity

DAY = 86_400_000_000


def daily(counts: list[list[int]]) -> pl.LazyFrame:
    """Rows of items 0, 1, ... so often on each day."""
    rows = [(item, day * DAY) for day, own in enumerate(counts) for item, n in enumerate(own) for _ in range(n)]
    return pl.LazyFrame(rows, schema=["item", "time"], orient="row")


def config(**keys: Any) -> Sampling:
    return Sampling.model_validate({"item": "i", "by": "popularity", "exponent": 1.0, "window": 86400, **keys})


def test_a_row_draws_from_the_period_before_its_own() -> None:
    popularity = Popularity(config(), daily([[8, 2, 0], [0, 0, 0], [1, 1, 8], [0, 9, 1]]))
    times = pl.Series([0, DAY, 2 * DAY - 1, 3 * DAY, 9 * DAY])
    assert popularity.periods(times).tolist() == [-1, 0, 0, 1, 2]  # type: ignore[union-attr]
    overall = np.array([9, 12, 9]) / 30
    order = popularity.candidates["item"].to_numpy()
    for time, within in ((0, overall), (DAY, np.array([8, 2, 0]) / 10), (3 * DAY, np.array([1, 1, 8]) / 10)):
        expected = (overall if time == 0 else 0.1 * overall + 0.9 * within)[order]
        period = popularity.periods(pl.Series([time] * 3))
        np.testing.assert_allclose(np.exp(popularity.log_q(np.arange(3), period)) / 3, expected, rtol=1e-6)
        uniform = (np.arange(20_000) + 0.5) / 20_000
        drawn = popularity.draw(uniform, np.repeat(period, 20_000)[:20_000])  # type: ignore[arg-type]
        np.testing.assert_allclose(np.bincount(drawn, minlength=3) / 20_000, expected, atol=1e-3)
    least = popularity.log_q(np.array([-1]), np.array([0]))
    np.testing.assert_allclose(np.exp(least) / 3, 0.1 * overall.min(), rtol=1e-6)


def test_a_window_needs_popularity_and_a_time() -> None:
    with pytest.raises(ValidationError, match="only for by: popularity"):
        config(by="uniform")
    data = {
        "log": "log.parquet",
        "user": "u",
        "tasks": {"chosen": {"column": "positive"}},
        "sampling": {"item": "i", "by": "popularity", "window": 60},
        "features": {"i": {"kind": "id"}},
    }
    with pytest.raises(ValidationError, match=r"`sampling.window` needs the key `time`"):
        DataConfig.model_validate(data)


def drawn(folder: Path, **sampling: Any) -> DataConfig:
    rng = np.random.default_rng(0)
    log = pl.DataFrame({"u": rng.integers(0, 30, 300), "i": rng.zipf(1.5, 300) % 12, "t": np.arange(300) * 3600})
    log.write_parquet(folder / "log.parquet")
    data: dict[str, Any] = {
        "log": str(folder / "log.parquet"),
        "time": "t",
        "user": "u",
        "keys": ["u", "i"],
        "tasks": {"chosen": {"column": "positive"}, "late": {"column": "t", "kind": "regression"}},
        "sampling": {"item": "i", **sampling},
        "features": {"i": {"kind": "id"}},
    }
    return DataConfig.model_validate(data)


@pytest.mark.parametrize(("sampling", "corrected"), [({}, False), ({"by": "popularity"}, True)])
def test_batches_hold_what_their_logits_are_corrected_by(
    tmp_path: Path, sampling: dict[str, Any], corrected: bool
) -> None:
    dataset = prepare(drawn(tmp_path, **sampling), tmp_path / "dataset")
    frame = dataset.frame("train").collect()
    chance = dict(pl.read_parquet(dataset.path / "candidates.parquet").select("item", "log_q").rows())
    expected = [chance[item] + np.log(len(chance)) for item in frame["key:i"]]
    batch = next(iter(Loader(dataset, "train", batch_size=64, shuffle=True)))
    if not corrected:
        assert batch.log_q is None
        assert "log_q:chosen" not in frame.columns
        return
    np.testing.assert_allclose(frame["log_q:chosen"], expected, rtol=1e-5)
    assert batch.log_q is not None
    np.testing.assert_array_equal(batch.log_q[:, 0].numpy(), frame["log_q:chosen"].to_numpy()[batch.rows.numpy()])
    assert not batch.log_q[:, 1].any()
    logits = batch.dense.new_zeros(len(batch), 2)
    assert (batch.of_sample(logits) == -batch.log_q).all()


def test_a_data_set_of_rows_drawn_by_an_earlier_version_is_refused(tmp_path: Path) -> None:
    dataset = prepare(drawn(tmp_path, by="popularity"), tmp_path / "dataset")
    for part in (dataset.path / "splits" / "train").glob("*.arrow"):
        rows = pl.read_ipc(part.read_bytes()).drop("log_q:chosen")
        rows.write_ipc(part, compat_level=pl.CompatLevel.oldest())
    with pytest.raises(UserError, match="has no column 'log_q:chosen': prepare the data set again"):
        dataset.columns("train")
