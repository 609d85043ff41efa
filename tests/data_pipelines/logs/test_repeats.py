"""Negatives that the user took before: only those, as often as log q says, and never later than the row."""

from collections.abc import Sequence

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from data_pipelines.config.learning import Sampling
from data_pipelines.features.config import DataConfig
from data_pipelines.logs.negatives import NegativeSampler
from data_pipelines.logs.popularity import Popularity
from data_pipelines.logs.repeats import Repeats

Row = tuple[int | None, int, int]


def log_of(rows: Sequence[Row]) -> pl.DataFrame:
    types = {"user": pl.UInt64, "item": pl.Int64, "time": pl.Int64}
    return pl.DataFrame(rows, schema=types, orient="row")


@given(
    rows=st.lists(
        st.tuples(st.one_of(st.none(), st.integers(0, 3)), st.integers(0, 6), st.integers(0, 5)),
        min_size=2,
        max_size=25,
    ),
    asked=st.lists(st.tuples(st.one_of(st.none(), st.integers(0, 4)), st.integers(-1, 7)), min_size=1, max_size=8),
)
@settings(max_examples=100, deadline=None)
def test_what_a_user_took_before_is_what_a_loop_finds(rows: list[Row], asked: list[tuple[int | None, int]]) -> None:
    log = log_of(rows)
    if log["item"].n_unique() < 2:
        return
    popularity = Popularity(Sampling(item="item"), log.lazy())
    repeats = Repeats(log.lazy(), popularity)
    users = pl.Series([user for user, _ in asked], dtype=pl.UInt64)
    known = repeats.known(users, pl.Series([time for _, time in asked]))
    items = popularity.candidates["item"].to_list()
    for n, (user, time) in enumerate(asked):
        expected = {item for u, item, t in rows if u is not None and u == user and t < time}
        assert known.count[n] == len(expected)
        here = known[np.full(len(items), n)]
        held = repeats.holds(np.arange(len(items)), here)
        assert {item for item, is_held in zip(items, held, strict=True) if is_held} == expected
        if expected:
            steps = (np.arange(len(expected)) + 0.5) / len(expected)
            drawn = repeats.draw(steps, known[np.full(len(steps), n)])
            assert {items[code] for code in drawn} == expected
    assert not repeats.holds(np.full(len(asked), -1), known).any()


@pytest.mark.parametrize("by", ["uniform", "popularity"])
def test_items_come_as_often_as_log_q_says(by: str) -> None:
    """A user with a past of three items, one without a past, and a row without a user."""
    popular = [(9, item, 0) for item in range(8) for _ in range(2 ** (item % 4))]
    log = log_of([*popular, (1, 2, 1), (1, 5, 1), (1, 6, 2), (1, 7, 3), (2, 7, 3), (None, 7, 3)])
    frame = log.with_columns(group=pl.lit(None, pl.UInt64), split=pl.lit(0, pl.Int8))
    config = Sampling.model_validate({"item": "item", "negatives": 4000, "by": by, "repeats": 0.6, "exclude": "none"})
    sampler = NegativeSampler(config, frame.lazy())
    last = frame.with_row_index("row")[-3:]
    draws = sampler.draw(last)
    items = draws.items.to_numpy().reshape(3, -1)
    plain = np.exp(sampler.candidates.sort("item")["log_q"].to_numpy())
    past = np.isin(np.arange(8), [2, 5, 6]) / 3
    for n, chance in enumerate([0.4 * plain + 0.6 * past, plain, plain]):
        expected = np.where(np.arange(8) == 7, 0, chance) / (1 - chance[7])  # a row's own item is not drawn
        np.testing.assert_allclose(np.bincount(items[n], minlength=8) / 4000, expected, atol=0.03)
        of_drawn = dict(zip(items[n].tolist(), draws.log_q[n, 1:].tolist(), strict=True))
        for item, log_q in of_drawn.items():
            assert log_q == pytest.approx(np.log(chance[item] * 8), abs=1e-5)
        assert draws.log_q[n, 0] == pytest.approx(np.log(chance[7] * 8), abs=1e-5)


def test_what_contradicts_itself_is_refused() -> None:
    with pytest.raises(ValidationError, match="exclude: past never does"):
        Sampling(item="item", repeats=0.5, exclude="past")
    data = {"user": "u", "tasks": {"y": {"column": "positive"}}, "sampling": {"item": "i", "repeats": 0.5}}
    features = {"u": {"kind": "id"}, "i": {"kind": "id"}}
    with pytest.raises(ValidationError, match=r"`sampling\.repeats` needs the key `time`"):
        DataConfig.model_validate({**data, "log": "log.csv", "split": {"by": "random"}, "features": features})
