"""The kind ``number``: transforms, buckets and what is refused."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.errors import UserError
from data_pipelines.features.config import DataConfig
from data_pipelines.features.encoder import Encoder
from data_pipelines.features.plan import Plan

FLOATS = st.one_of(st.none(), st.floats(-1e6, 1e6), st.sampled_from([math.nan, math.inf]))


def make(features: dict[str, Any]) -> DataConfig:
    return DataConfig.model_validate({"log": "unused", "tasks": {"y": {"column": "y"}}, "features": features})


def frame(rows: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema={"f": pl.Float64})


def test_numbers_beyond_32_bits_stay_finite() -> None:
    features = {
        "x": {"kind": "number", "column": "f"},
        "z": {"kind": "number", "column": "f", "transform": "standardize"},
    }
    encoder = Encoder.fit(Plan.of(make(features)), frame([{"f": 0.0}, {"f": 1e-300}]).lazy())
    encoded = encoder.encode(frame([{"f": 1e300}, {"f": -1e300}]).lazy()).collect()
    largest = float(np.finfo(np.float32).max)
    assert encoded["x"].to_list() == encoded["z"].to_list() == [largest, -largest]


def test_a_number_that_is_mostly_zero_has_edges_among_its_other_values() -> None:
    config = make({"b": {"kind": "number", "column": "f", "transform": "buckets", "buckets": 16}})
    gains = [0.0] * 970 + [float(value) for value in range(1, 31)]
    encoder = Encoder.fit(Plan.of(config), pl.LazyFrame({"f": gains}))
    ids = encoder.encode(pl.LazyFrame({"f": gains})).collect()["b"]
    assert ids[:970].n_unique() == 1
    assert ids.n_unique() >= 8


def test_numbers_too_large_to_standardise_are_refused() -> None:
    config = make({"z": {"kind": "number", "column": "f", "transform": "standardize"}})
    with pytest.raises(UserError, match=r"'z'.*'f'.*clip"):
        Encoder.fit(Plan.of(config), frame([{"f": 1e308}, {"f": 1.5e308}]).lazy())


@settings(max_examples=40, deadline=None)
@given(train=st.lists(FLOATS, min_size=1, max_size=30), rows=st.lists(FLOATS, min_size=1, max_size=10))
def test_transforms_do_what_a_plain_loop_does(train: list[float | None], rows: list[float | None]) -> None:
    transforms = ("none", "log1p", "standardize", "buckets", "piecewise")
    features = {name: {"kind": "number", "column": "f", "transform": name, "buckets": 4} for name in transforms}
    features["piecewise"]["indicator"] = True
    plan = Plan.of(make(features))
    encoder = Encoder.fit(plan, pl.LazyFrame({"f": train}, schema={"f": pl.Float64}))
    encoded = encoder.encode(pl.LazyFrame({"f": rows}, schema={"f": pl.Float64})).collect()
    known = [value for value in train if value is not None and math.isfinite(value)]
    mean = float(np.mean(known)) if known else 0.0
    deviation = float(np.std(known)) if known else 1.0
    halves = [(pl.Series(known, dtype=pl.Float64), 2), (pl.Series(known, dtype=pl.Float64).unique(), 3)]
    found = {values.quantile(i / parts) for values, parts in halves for i in range(1, parts)}
    edges = sorted(edge for edge in found if edge is not None)
    for row, value in zip(encoded.iter_rows(named=True), rows, strict=True):
        if value is None or not math.isfinite(value):
            assert (row["none"], row["log1p"], row["standardize"], row["buckets"]) == (0, 0, 0, 0)
            assert row["piecewise"] == [0, 0, 0, 0, 1]
            continue
        assert row["none"] == np.float32(value)
        assert math.isclose(row["log1p"], math.copysign(math.log1p(abs(value)), value), rel_tol=1e-6, abs_tol=1e-12)
        if deviation > 1e-3 * (1 + abs(mean)):
            assert math.isclose(row["standardize"], (value - mean) / deviation, rel_tol=1e-4, abs_tol=1e-4)
        assert row["buckets"] == 2 + sum(value >= edge for edge in edges)
        ends = {min(known), max(known)} if known else set()
        assert row["piecewise"] == pytest.approx([*_pieces(value, sorted({*edges, *ends}), 4), 0], abs=1e-5)


def _pieces(value: float, edges: list[float], count: int) -> list[float]:
    """Equation 1 of https://arxiv.org/abs/2203.05556, with 0 and 1 beyond the ends."""
    found = [0.0] * count
    for piece, (low, high) in enumerate(pairwise(edges)):
        if value >= high:
            found[piece] = 1.0
        elif value > low:
            found[piece] = (value - low) / (high - low)
    return found


def test_a_linear_model_of_pieces_can_bend() -> None:
    config = make({"p": {"kind": "number", "column": "f", "transform": "piecewise", "buckets": 8}})
    values = [0.0] * 90 + [float(value) for value in range(1, 11)]
    encoder = Encoder.fit(Plan.of(config), pl.LazyFrame({"f": values}))
    encoded_NW = encoder.encode(pl.LazyFrame({"f": values})).collect()["p"].to_numpy()
    bent_N = np.abs(np.array(values) - 4)
    design_NC = np.column_stack([encoded_NW, np.ones(len(values))])
    fitted_N = design_NC @ np.linalg.lstsq(design_NC, bent_N, rcond=None)[0]
    assert np.abs(fitted_N - bent_N).max() < 1
    beyond = encoder.encode(pl.LazyFrame({"f": [-50.0, 1e300]})).collect()["p"].to_list()
    assert beyond == [encoded_NW[0].tolist(), encoded_NW[-1].tolist()]  # as at the ends of the training rows


@pytest.mark.parametrize("edges", [[0.0, 1.0, 1.0], [0.0, 1.0, 2.0, 3.0, 4.0, 5.0], None])
def test_edges_that_cannot_be_those_of_pieces_are_refused(edges: list[float] | None) -> None:
    config = make({"p": {"kind": "number", "column": "f", "transform": "piecewise", "buckets": 4}})
    with pytest.raises(ValueError, match="edges"):
        Plan.of(config).feature("p").check_fitted(edges)
