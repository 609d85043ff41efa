"""Lists: whole in splits, neighbours on disk, whole in batches; and what is relative to them."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.dataset import epoch_order
from data_pipelines.dataset import lists as lists_module
from data_pipelines.dataset.dataset import Dataset, prepare
from data_pipelines.dataset.loader import Loader
from data_pipelines.errors import UserError
from data_pipelines.features.config import DataConfig

MEASURES = ["rank", "share", "from_mean", "from_min", "from_median", "zscore", "count"]
FEATURES = {
    "item": {"kind": "id"},
    "price": {"kind": "relative", "measures": MEASURES},
    "again": {"kind": "relative", "column": "item", "measures": ["count"]},
    "seen": {"kind": "statistic", "measure": "count", "by": ["item"]},
    "popularity": {"kind": "relative", "of": "seen", "measures": ["rank", "share"]},
}


def log(*, scattered: bool) -> pl.DataFrame:
    """Lists of 1 to 8 rows with a few rows of no list, each list at one time, some prices null."""
    rng = np.random.default_rng(1)
    sizes = rng.integers(1, 9, 150)
    session = np.repeat(np.arange(150), sizes)
    rows = len(session)
    frame = pl.DataFrame(
        {
            "session": pl.Series([None if s % 40 == 0 else f"s{s}" for s in session]),
            "time": 1_700_000_000 + 60 * session,
            "item": rng.integers(0, 6, rows),
            "price": pl.Series(np.round(rng.lognormal(3, 1, rows))).set(pl.Series(rng.random(rows) < 0.1), None),
            "shown": np.arange(rows),
            "click": (rng.random(rows) < 0.3).astype(int),
        }
    )
    return frame.sample(fraction=1, shuffle=True, seed=3) if scattered else frame


def make(folder: Path, *, scattered: bool = False, **keys: Any) -> Dataset:
    log(scattered=scattered).write_parquet(folder / "log.parquet")
    data = {
        "log": str(folder / "log.parquet"),
        "time": "time",
        "group": ["session", "time"],
        "tasks": {"click": {"column": "click"}},
        "features": FEATURES,
        "keys": ["session", "item"],
    }
    return prepare(DataConfig.model_validate(data | keys), folder / "dataset")


@pytest.fixture(scope="module", params=[False, True], ids=["in order", "scattered"])
def dataset(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lists_module, "_CHUNK_ROWS", 50)
        return make(tmp_path_factory.mktemp("lists"), scattered=request.param)


def reference(values: list[float | None]) -> dict[str, list[float]]:
    """Every measure of the rows of one list, one row at a time."""
    known = np.array([v for v in values if v is not None], dtype=float)
    found: dict[str, list[float]] = {measure: [] for measure in MEASURES}
    for value in values:
        if value is None:
            row = dict.fromkeys(MEASURES, 0.0) | {"rank": 0.5}
        else:
            below, ties = (known < value).sum(), (known == value).sum()
            row = {
                "rank": (below + (ties - 1) / 2) / (len(known) - 1) if len(known) > 1 else 0.5,
                "share": value / known.sum() if known.sum() else 0.0,
                "from_mean": value - known.mean(),
                "from_min": value - known.min(),
                "from_median": value - np.median(known),
                "zscore": (value - known.mean()) / known.std() if known.std() else 0.0,
                "count": np.log(ties),
            }
        for measure in MEASURES:
            found[measure].append(row[measure])
    return found


def test_relative_features_are_those_of_a_loop_over_lists(dataset: Dataset) -> None:
    for split in dataset.splits:
        raw, stored = dataset.raw(split), dataset.frame(split).collect()
        lists = np.where(stored[":list"] == 0, np.arange(len(stored)), stored[":list"])
        for key in np.unique(lists):
            rows = np.flatnonzero(lists == key)
            expected = reference(raw["price"][rows].to_list())
            for measure, values in expected.items():
                np.testing.assert_allclose(stored[f"price.{measure}"][rows], values, rtol=1e-4, atol=1e-4)
            popular = reference(stored["seen"][rows].to_list())
            np.testing.assert_allclose(stored["popularity.rank"][rows], popular["rank"], atol=1e-5)
            items = raw["item"][rows].to_list()
            np.testing.assert_allclose(stored["again.count"][rows], np.log([items.count(item) for item in items]))


def test_lists_are_whole_in_splits_and_neighbours_on_disk(dataset: Dataset) -> None:
    keys = [dataset.lists(split) for split in dataset.splits]
    assert all(lists_module.together(key) for key in keys)
    train, valid, test = ({*key[key > 0]} for key in keys)
    assert len(train | valid | test) == len(train) + len(valid) + len(test)


def test_encoding_whole_lists_again_gives_the_same(dataset: Dataset) -> None:
    raw, stored = dataset.raw("test"), dataset.frame("test").collect()
    names = [name for name in dataset.schema.feature_names if "." in name]
    again = dataset.encoder.encode(raw.drop(names).lazy()).collect()
    for name in names:
        np.testing.assert_allclose(again[name], stored[name], rtol=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    batch_size=st.integers(1, 90),
    world_size=st.integers(1, 4),
    shuffle=st.booleans(),
    window=st.sampled_from([30, 100, 1 << 17]),
    block=st.sampled_from([1, 20, 512]),
    done=st.integers(0, 8),
    resumed=st.tuples(st.integers(1, 90), st.integers(1, 3)),
)
def test_batches_hold_whole_lists_and_every_row_once(
    dataset: Dataset,
    batch_size: int,
    world_size: int,
    shuffle: bool,
    window: int,
    block: int,
    done: int,
    resumed: tuple[int, int],
) -> None:
    keys = dataset.lists("train")
    rows = keys.size
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(epoch_order, "WINDOW_ROWS", window)
        patch.setattr(epoch_order, "BLOCK_ROWS", block)

        def loaders(size: int, world: int) -> list[Loader]:
            return [
                Loader(dataset, "train", batch_size=size, shuffle=shuffle, rank=rank, world_size=world, lists=True,
                       threads=0)
                for rank in range(world)
            ]  # fmt: skip

        begun = loaders(batch_size, world_size)
        taken = [list(loader) for loader in begun]
        assert len({len(part) for part in taken}) == 1
        partly = loaders(batch_size, world_size)
        first = [[batch for batch, _ in zip(loader, range(done), strict=False)] for loader in partly]
        state = partly[0].state_dict()
        state["next"] = min(done, len(taken[0]))
        rest = loaders(*resumed)
        for loader in rest:
            loader.load_state_dict(state)
        last = [list(loader) for loader in rest]
    for batches in ([b for part in taken for b in part], [b for part in (*first, *last) for b in part]):
        seen = torch.cat([batch.rows for batch in batches]).numpy()
        np.testing.assert_array_equal(np.sort(seen), np.arange(rows))
        for batch in batches:
            key, number = keys[batch.rows.numpy()], batch.lists.numpy()
            same = (key[1:] == key[:-1]) & (key[1:] > 0)
            np.testing.assert_array_equal(np.diff(number), ~same)
        whole = np.concatenate([np.unique(keys[batch.rows.numpy()]) for batch in batches])
        assert len(whole[whole > 0]) == len(np.unique(keys[keys > 0]))


def test_lists_of_single_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no two rows are of one list: `group: \[shown\]` must name"):
        make(tmp_path, group=["shown"])


def test_a_missing_column_of_lists_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="`group` reads the column 'query', which is not there"):
        make(tmp_path, group=["query"])


def test_a_split_column_that_divides_lists_is_refused(tmp_path: Path) -> None:
    frame = log(scattered=False).with_columns(fold=pl.Series(["train", "test"] * 1000)[: len(log(scattered=False))])
    frame.write_parquet(tmp_path / "other.parquet")
    with pytest.raises(UserError, match=r"the split's column 'fold' divides \d+ lists"):
        make(tmp_path, log=str(tmp_path / "other.parquet"), split={"by": "column", "column": "fold"})


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"group": None}, "relative to its list needs the key `group`"),
        ({"features": FEATURES | {"x": {"kind": "relative", "of": "item"}}}, "not a feature of exactly one number"),
        ({"features": {"x": {"kind": "relative", "of": "item", "column": "item"}}}, "either a `column` or `of`"),
        ({"user": "item", "split": {"by": "leave_last", "valid": 1, "test": 1}}, "would divide the lists of `group`"),
    ],
)
def test_keys_that_do_not_fit_are_refused(tmp_path: Path, keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make(tmp_path, **keys)


def test_rows_without_lists_have_no_batches_of_lists(tmp_path: Path) -> None:
    dataset = make(tmp_path, group=None, features={"item": {"kind": "id"}})
    with pytest.raises(UserError, match=r"has no lists: say in data.group"):
        Loader(dataset, "train", batch_size=8, lists=True)
