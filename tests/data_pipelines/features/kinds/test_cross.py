"""The kind ``cross``: combinations of values."""

from typing import Any

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.features.config import DataConfig
from data_pipelines.features.encoder import Encoder
from data_pipelines.features.plan import Plan

VALUES = st.one_of(st.none(), st.sampled_from("abc"))
ROWS = st.lists(
    st.fixed_dictionaries({"u": VALUES, "v": VALUES, "tags": st.lists(VALUES, max_size=3)}), min_size=1, max_size=10
)
FEATURES = {
    "u": {"kind": "id"},
    "v": {"kind": "id"},
    "tags": {"kind": "bag"},
    "pair": {"kind": "cross", "of": ["u", "v"]},
    "pairs": {"kind": "cross", "of": ["u", "tags"]},
}


@settings(max_examples=40, deadline=None)
@given(rows=ROWS)
def test_rows_share_an_id_where_they_share_all_values(rows: list[dict[str, Any]]) -> None:
    data = {"log": "unused", "tasks": {"y": {"column": "y"}}, "features": FEATURES}
    frame = pl.LazyFrame(rows, schema={"u": pl.String, "v": pl.String, "tags": pl.List(pl.String)})
    encoded = Encoder.fit(Plan.of(DataConfig.model_validate(data)), frame).encode(frame).collect()
    ids: dict[tuple[str | None, ...], set[int]] = {}
    for row, pair, pairs in zip(rows, encoded["pair"].to_list(), encoded["pairs"].to_list(), strict=True):
        assert (pair == 0) == (None in (row["u"], row["v"]))
        ids.setdefault(("pair", row["u"], row["v"]), set()).add(pair)
        assert len(pairs) == len(row["tags"])
        for tag, combined in zip(row["tags"], pairs, strict=True):
            assert (combined == 0) == (None in (row["u"], tag))
            ids.setdefault(("pairs", row["u"], tag), set()).add(combined)
    assert all(len(own) == 1 for own in ids.values())
    for feature in ("pair", "pairs"):
        known = [own for (name, *values), own in ids.items() if name == feature and None not in values]
        assert len(set().union(*known)) == len(known)
