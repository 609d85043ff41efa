"""Artifacts whose files do not fit together, under a manifest that is right, are refused in one sentence."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from data_pipelines.disk.storage import seal
from data_pipelines.errors import UserError
from data_pipelines.features import vocabulary_files
from data_pipelines.features.config import DataConfig
from data_pipelines.features.encoder import Encoder
from data_pipelines.features.plan import Plan
from serving.artifact.artifact import Artifact
from serving.batch.scorer import Scorer


def edit_json(name: str, change: Callable[[Any], object]) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return edit


def edit_header(change: Callable[[Any], object], *, name: str = "tables.safetensors") -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        content = (folder / name).read_bytes()
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
        change(header)
        text = json.dumps(header).encode()
        (folder / name).write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])

    return edit


def edit_tensors(name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        tensors = {key: tensor.clone() for key, tensor in load_file(folder / name).items()}
        change(tensors)
        save_file(tensors, folder / name)

    return edit


def cut(folder: Path, name: str, size: int) -> None:
    (folder / name).write_bytes((folder / name).read_bytes()[:size])


def values(folder: Path, name: str, column: list[Any]) -> None:
    pl.DataFrame({"value": column}).write_parquet(folder / "vocabularies" / name)


def overlap(header: dict[str, Any]) -> None:
    for entry in header.values():
        entry.update(data_offsets=first(header)["data_offsets"])


def first(entries: dict[str, Any]) -> Any:
    return next(entry for name, entry in entries.items() if name != "__metadata__")


def halve(tensors: dict[str, torch.Tensor]) -> None:
    name = next(name for name, tensor in tensors.items() if tensor.dim() == 2 and len(tensor) > 1)
    tensors[name] = tensors[name][: len(tensors[name]) // 2].contiguous()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "offsets outside the file": edit_header(lambda h: first(h).update(data_offsets=[1 << 40, (1 << 40) + 8])),
    "offsets that overlap": edit_header(
        lambda h: [e.update(data_offsets=first(h)["data_offsets"]) for e in h.values()]
    ),
    "a shape of many rows": edit_header(lambda h: first(h).update(shape=[1 << 40, 8])),
    "another dtype": edit_header(lambda h: first(h).update(dtype="I8")),
    "a header of 2**60 bytes": lambda f: (f / "tables.safetensors").write_bytes((1 << 60).to_bytes(8, "little")),
    "no header": lambda f: (f / "tables.safetensors").write_bytes(b""),
    "tables cut short": lambda f: cut(f, "tables.safetensors", -9),
    "tables that are gone": lambda f: (f / "tables.safetensors").unlink(),
    "fewer rows than ids": edit_tensors("tables.safetensors", halve),
    "a dense part of another shape": edit_tensors("dense.safetensors", halve),
    "a dense part cut short": lambda f: (f / "dense.safetensors").write_bytes(
        (f / "dense.safetensors").read_bytes()[:90]
    ),
    "rows of 10**12": edit_json("model.json", lambda m: first(m["tables"]).update(rows=10**12)),
    "rows below zero": edit_json("model.json", lambda m: first(m["tables"]).update(rows=-1)),
    "no columns": edit_json("model.json", lambda m: first(m["tables"]).update(dim=0)),
    "bits that no kernel reads": edit_json("model.json", lambda m: first(m["tables"]).update(bits=3)),
    "fewer bits than stored": edit_json("model.json", lambda m: first(m["tables"]).update(bits=4)),
    "a table too many": edit_json("model.json", lambda m: m["tables"].update(other=first(m["tables"]))),
    "a table too few": edit_json("model.json", lambda m: m["tables"].pop("user")),
    "another schema": edit_json("model.json", lambda m: m["encoded"]["tables"][0].update(rows=10**9)),
    "a wide ranker": edit_json("model.json", lambda m: m["ranker"].update(dim=10**9)),
    "a tower of 10**12": edit_json("model.json", lambda m: m["ranker"]["tower"].update(hidden=10**12)),
    "layers without end": edit_json("model.json", lambda m: m["ranker"]["interaction"].update(layers=10**9)),
    "a calibration that is no number": edit_json(
        "model.json", lambda m: m.update(calibration={"click": {"kind": "platt", "slope": None, "intercept": 0}})
    ),
    "a calibration of another task": edit_json(
        "model.json", lambda m: m.update(calibration={"buy": {"kind": "platt", "slope": 1, "intercept": 0}})
    ),
    "a model that is no JSON": lambda f: (f / "model.json").write_text("{"),
    "a model nested deeply": lambda f: (f / "model.json").write_text("[" * 100_000),
    "a card that is no JSON": lambda f: (f / "model_card.json").write_text("nonsense"),
    "a card of another kind": lambda f: (f / "model_card.json").write_text("[]"),
    "a reference of other features": edit_json("reference.json", lambda r: r["features"].pop("user")),
    "a reference of too few shares": edit_json("reference.json", lambda r: r["features"]["price"]["shares"].pop()),
    "an encoder that is no JSON": lambda f: (f / "encoder.json").write_text("{"),
    "an encoder without tables": edit_json("encoder.json", lambda e: e.update(tables={})),
    "an encoder of slots": edit_json("encoder.json", lambda e: e["tables"]["user"].update(size=10**6)),
    "an encoder of other features": edit_json("encoder.json", lambda e: e["features"].append("nobody")),
    "buckets below zero": edit_json("encoder.json", lambda e: e["tables"]["user"].update(oov_buckets=-5)),
    "a vocabulary of numbers": lambda f: pl.DataFrame({"value": [1]}).write_parquet(
        f / "vocabularies" / "user.parquet"
    ),
    "a vocabulary of nothing": lambda f: (f / "vocabularies" / "user.parquet").write_bytes(b""),
    "a vocabulary of more values": lambda f: values(f, "user.parquet", [str(i) for i in range(10**4)]),
    "a vocabulary that is a link": lambda f: (
        (f / "vocabularies" / "user.parquet").unlink(),
        (f / "vocabularies" / "user.parquet").symlink_to("/etc/passwd"),
    ),
}


def copied(exported: Path, folder: Path, damage: Callable[[Path], object]) -> Path:
    shutil.copytree(exported, folder)
    damage(folder)
    seal(folder, "artifact", {})
    return folder


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_hostile_artifact_is_refused_in_one_sentence(kind: str, exported: Path, tmp_path: Path) -> None:
    folder = copied(exported, tmp_path / "artifact", DAMAGE[kind])
    with pytest.raises(UserError) as refused:
        Artifact.open(folder)
    assert "\n" not in str(refused.value)
    assert str(folder) in str(refused.value)


def test_a_value_twice_in_a_vocabulary_is_refused(exported: Path, tiny_log: Path, tmp_path: Path) -> None:
    path = Path("vocabularies") / "user.parquet"
    known = pl.read_parquet(exported / path)["value"].to_list()
    folder = copied(exported, tmp_path / "artifact", lambda f: values(f, "user.parquet", [known[0], *known[:-1]]))
    with pytest.raises(UserError, match="vocabulary is damaged"):
        Scorer(Artifact.open(folder)).score(pl.read_parquet(tiny_log).head(5))


def test_large_vocabularies_are_mapped_and_score_as_small_ones(
    exported: Path, tiny_log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vocabulary_files, "_SMALL", 20)

    def rewrite(folder: Path) -> None:
        encoder = Encoder.load(folder)
        shutil.rmtree(folder / "vocabularies")
        encoder.save(folder, slim=True)

    artifact = Artifact.open(copied(exported, tmp_path / "artifact", rewrite), verify="full")
    assert (artifact.path / "vocabularies" / "item.safetensors").exists()
    assert (artifact.path / "vocabularies" / "device.parquet").exists()
    rows = pl.read_parquet(tiny_log).with_columns(item=pl.concat_str("item", pl.lit(" ")))
    assert Scorer(artifact).score(rows).equals(Scorer(Artifact.open(exported)).score(rows))
    assert "values" not in vars(artifact.encoder.tables["item"])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_changed_header_is_refused_or_reads_inside_the_file(
    data: st.DataObject, exported: Path, tiny_log: Path, tmp_path: Path
) -> None:
    def damage(folder: Path) -> None:
        content = bytearray((folder / "tables.safetensors").read_bytes())
        size = int.from_bytes(content[:8], "little")
        for _ in range(data.draw(st.integers(1, 3))):
            content[data.draw(st.integers(0, 7 + size))] = data.draw(st.integers(0, 255))
        (folder / "tables.safetensors").write_bytes(content)

    folder = tmp_path / f"artifact-{len(list(tmp_path.iterdir()))}"
    copied(exported, folder, damage)
    try:
        scores = Scorer(Artifact.open(folder)).score(pl.read_parquet(tiny_log).head(50))
    except UserError:
        return
    assert len(scores) == 50


def test_ages_that_a_row_carries_stay_inside_their_table() -> None:
    """A request may bring its own history, with any number for the age of an event."""
    features = {"item": {"kind": "id"}, "likes": {"kind": "history", "of": ["item"], "entity": "user", "age": True}}
    config = DataConfig.model_validate(
        {"log": "none", "time": "t", "user": "user", "tasks": {"y": {"column": "y"}}, "features": features}
    )
    rows = pl.DataFrame({"user": ["a"], "item": ["x"], "t": [1], "y": [1]})
    encoder = Encoder.fit(Plan.of(config), rows.lazy())
    carried = rows.with_columns(
        pl.Series("likes.item", [["x"] * 4]), pl.Series("likes.age", [[-(10**12), 10**12, 0, 5]])
    )
    ages = encoder.encode(carried.lazy()).collect()["likes.age"][0].to_numpy()
    assert np.all((ages >= 0) & (ages < encoder.schema.table("likes.age").rows))
