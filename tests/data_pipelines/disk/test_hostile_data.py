"""Data sets and states whose files do not fit together, under a manifest that is right, are refused in one sentence."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from data_pipelines.dataset.dataset import Dataset, prepare
from data_pipelines.dataset.loader import Loader
from data_pipelines.disk.storage import MANIFEST, seal
from data_pipelines.errors import UserError
from data_pipelines.features.config import DataConfig
from data_pipelines.past.state import State

PART = Path("splits") / "train" / "part-00000.arrow"
EVENTS = Path("events") / "likes"
STATE = Path("state")


@pytest.fixture(scope="module")
def dataset(tiny_data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    features = tiny_data["features"] | {
        "likes": {"kind": "history", "of": ["item"], "age": True},
        "rate": {"kind": "statistic", "measure": "rate", "of": "click", "by": ["item"]},
    }
    path = tmp_path_factory.mktemp("data") / "dataset"
    prepare(DataConfig.model_validate(tiny_data | {"features": features}), path)
    return path


def edit_column(name: str, change: Callable[[pa.Array], pa.Array | None]) -> Callable[[Path], object]:
    """Rewrite the first part of the training split with another column; ``None`` leaves it out."""

    def edit(folder: Path) -> None:
        with pa.OSFile(str(folder / PART)) as file:
            table = pa.ipc.open_file(file).read_all().combine_chunks()
        place = table.schema.get_field_index(name)
        changed = change(table.column(name).combine_chunks())
        table = table.remove_column(place)
        table = table if changed is None else table.add_column(place, name, changed)
        with pa.ipc.new_file(str(folder / PART), table.schema) as writer:
            writer.write_table(table)

    return edit


def edit_json(path: Path | str, change: Callable[[Any], object]) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        content = json.loads((folder / path).read_text())
        change(content)
        (folder / path).write_text(json.dumps(content))

    return edit


def edit_array(path: Path, dtype: type[np.generic], change: Callable[[Any], Any]) -> Callable[[Path], object]:
    return lambda folder: change(np.fromfile(folder / path, dtype)).tofile(folder / path)


def with_offsets(lists: Any, change: Callable[[Any], Any]) -> pa.Array:
    """The same values under other offsets, which nobody compared with them."""
    offsets = change(lists.offsets.to_numpy().copy())
    buffers = [None, pa.py_buffer(offsets)]
    return pa.Array.from_buffers(lists.type, len(lists), buffers, children=[lists.values])


def swapped(offsets: Any) -> Any:
    offsets[1] = offsets[-1]
    return offsets


DAMAGE: dict[str, Callable[[Path], object]] = {
    "ids beyond the table": edit_column("user", lambda c: pa.array(np.full(len(c), 10**6, np.int32))),
    "ids below zero": edit_column("user", lambda c: pa.array(np.full(len(c), -1, np.int32))),
    "ids of a bag beyond the table": edit_column(
        "tags",
        lambda c: (
            pa.ListArray.from_arrays(c.offsets, pa.array(np.full(len(c.values), 10**6, np.int32)))
            if pa.types.is_list(c.type)
            else pa.LargeListArray.from_arrays(c.offsets, pa.array(np.full(len(c.values), 10**6, np.int32)))
        ),
    ),
    "lists that overlap": edit_column("tags", lambda c: with_offsets(c, swapped)),
    "a column that is gone": edit_column("user", lambda c: None),
    "ids as text": edit_column("user", lambda c: c.cast(pa.string())),
    "labels as whole numbers": edit_column("label:click", lambda c: c.cast(pa.int32())),
    "histories that start beyond the events": edit_column(
        "likes:start", lambda c: pa.array(np.full(len(c), 10**6)).cast(c.type)
    ),
    "fewer rows than the manifest says": edit_column("user", lambda c: c),
    "a part that is no Arrow file": lambda f: (f / PART).write_bytes(b"ARROW1 nonsense"),
    "a part that is empty": lambda f: (f / PART).write_bytes(b""),
    "events beyond the table": edit_array(EVENTS / "likes.item.i32", np.int32, lambda a: a + 10**6),
    "fewer events in one file": edit_array(EVENTS / "likes.item.i32", np.int32, lambda a: a[:-1]),
    "events cut inside a number": lambda f: (f / EVENTS / "times.i64").write_bytes(b"abc"),
    "an encoder that is no JSON": lambda f: (f / "encoder.json").write_text("{"),
}


def resealed(path: Path, folder: Path, damage: Callable[[Path], object]) -> Path:
    shutil.copytree(path, folder)
    meta = json.loads((folder / MANIFEST).read_text())["meta"]
    damage(folder)
    if folder.joinpath(PART).stat().st_size and damage is DAMAGE["fewer rows than the manifest says"]:
        meta["splits"]["train"] += 1
    seal(folder, "dataset", meta)
    return folder


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_hostile_data_set_is_refused_in_one_sentence(kind: str, dataset: Path, tmp_path: Path) -> None:
    folder = resealed(dataset, tmp_path / "dataset", DAMAGE[kind])
    with pytest.raises(UserError):
        list(Loader(Dataset.open(folder), "train", batch_size=64, threads=0))


def test_splits_that_are_no_counts_are_refused(dataset: Path, tmp_path: Path) -> None:
    shutil.copytree(dataset, tmp_path / "dataset")
    for splits in ({"train": -1}, {"train": "many"}, {"../..": 1}, 7, None):
        edit_json(MANIFEST, lambda m, splits=splits: m["meta"].update(splits=splits))(tmp_path / "dataset")
        with pytest.raises(UserError, match="is damaged"):
            Dataset.open(tmp_path / "dataset")


def write_state(name: str, change: Callable[[pl.DataFrame], pl.DataFrame]) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        frame = change(pl.read_ipc((folder / name).read_bytes()))
        frame.write_ipc(folder / name, compat_level=pl.CompatLevel.oldest())

    return edit


STATES: dict[str, Callable[[Path], object]] = {
    "no JSON": lambda f: (f / "state.json").write_text("{"),
    "another JSON": lambda f: (f / "state.json").write_text("[]"),
    "no prior": edit_json("state.json", lambda s: s.update(priors={})),
    "a prior of text": edit_json("state.json", lambda s: s["priors"].update(rate=[["a", "b", "c"]])),
    "a time beyond all": edit_json("state.json", lambda s: s.update(latest=1 << 70)),
    "a name that leads outside": edit_json(
        "state.json", lambda s: s["config"]["features"].update({"/etc/likes": s["config"]["features"]["likes"]})
    ),
    "no Arrow file": lambda f: (f / "likes.arrow").write_bytes(b"nonsense"),
    "a file that is gone": lambda f: (f / "rate.arrow").unlink(),
    "a column that is gone": write_state("likes.arrow", lambda t: t.drop("time")),
    "a column of another type": write_state("rate.arrow", lambda t: t.with_columns(pl.col("at").cast(pl.String))),
}


@pytest.mark.parametrize("kind", STATES)
def test_a_hostile_state_is_refused_in_one_sentence(
    kind: str, dataset: Path, tiny_data: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "state"
    shutil.copytree(dataset / STATE, folder)
    (folder / MANIFEST).unlink(missing_ok=True)
    STATES[kind](folder)
    seal(folder, "state", {})
    rows = pl.scan_parquet(tiny_data["log"]).head(20)
    with pytest.raises(UserError, match=r"is damaged|is missing"):
        State.open(folder).attach(rows).collect()
