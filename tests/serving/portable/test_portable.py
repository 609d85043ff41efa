"""A portable artifact scores raw rows as the artifact does, with NumPy alone, and refuses what is damaged."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from portable_examples import FEATURES, MLP, MODELS, ROWS, write

from data_pipelines.errors import UserError
from data_pipelines.features import values
from serving.artifact.artifact import Artifact
from serving.artifact.calibration import Isotonic
from serving.batch.scorer import Scorer
from serving.portable.files import DENSE, MODEL, TABLES, PortableError
from serving.portable.scorer import PortableScorer, main
from serving.portable.values import bag_values, canonical, number
from serving.portable.write import write_portable


def compare(artifact: Artifact, folder: Path, rows: pl.DataFrame = ROWS) -> PortableScorer:
    """Score with both; logits and predictions agree within float32's rounding."""
    write_portable(artifact, folder / "portable")
    expected = Scorer(artifact).score(rows, logits=True)
    portable = PortableScorer(folder / "portable")
    logits_BT = portable.logits(rows.to_dicts())
    for at, task in enumerate(portable.tasks):
        np.testing.assert_allclose(logits_BT[:, at], expected[f"{task}:logit"].to_numpy(), rtol=1e-4, atol=1e-4)
    names = artifact.outputs.names
    scores = pl.DataFrame(portable.score(rows.to_dicts()), schema_overrides=dict.fromkeys(names, pl.Float32))
    assert scores.columns == ["user", *names]
    for name in names:
        np.testing.assert_allclose(scores[name], expected[name], rtol=1e-4, atol=1e-4)
    return portable


@pytest.mark.parametrize("model", MODELS)
def test_it_scores_as_the_artifact(model: str, tmp_path: Path) -> None:
    compare(write(tmp_path, MODELS[model]), tmp_path)


def test_conditional_probabilities_and_a_score(tmp_path: Path) -> None:
    artifact = write(tmp_path, {"dim": 4, "tower": MLP}, score="buy * exp(min(stars, 2)) + 0.1 * click")
    assert artifact.outputs.names == ("click", "stars", "buy", "buy:conditional", "score")
    compare(artifact, tmp_path)


def test_expected_levels_of_an_ordinal_task(tmp_path: Path) -> None:
    compare(write(tmp_path, MODELS["cross"], levels=[0, 1, 2.5, 4], score="click * stars"), tmp_path)


@pytest.mark.parametrize("bits", [16, 8, 4, 2])
def test_quantized_pruned_and_factored_tables(bits: int, tmp_path: Path) -> None:
    keep = torch.ones(15, dtype=torch.bool)
    keep[5:9] = False
    kept = {"bits": {"tags": bits, "words": bits}, "keep": {"item": keep}, "factors": {"tags": torch.randn(3, 4)}}
    compare(write(tmp_path, {"dim": 4, "tower": MLP}, **kept), tmp_path)


def test_values_that_training_never_saw_and_values_that_are_fixed(tmp_path: Path) -> None:
    features = FEATURES | {"place": {"kind": "id", "serve": 1}}
    artifact = write(tmp_path, {"dim": 4, "tower": MLP, "wide": True}, features)
    rows = ROWS.with_columns(user=pl.lit("never seen"), item=pl.lit(None, pl.Int64)).drop("place")
    compare(artifact, tmp_path, rows)


def test_isotonic_calibration_and_counts(tmp_path: Path) -> None:
    from serving.portable.answers import predict

    knots = Isotonic(logits=[-1.0, 0.0, 2.0], probabilities=[0.1, 0.2, 0.9])
    logits_B = np.linspace(-3, 3, 20, dtype=np.float32)
    task = {"kind": "binary", "calibration": knots.model_dump()}
    np.testing.assert_array_equal(predict(task, logits_B), knots(logits_B))
    np.testing.assert_array_equal(predict({"kind": "count", "calibration": None}, logits_B), np.exp(logits_B))


@pytest.mark.parametrize(
    ("model", "features", "said"),
    [
        ({}, {"at": {"kind": "hash", "column": "item", "rows": 9}}, "the feature 'at', which is neither"),
        ({}, {"user": {"kind": "id", "oov_buckets": 3}}, "several OOV buckets of the table 'user'"),
        ({"tasks": {"kind": "mmoe"}, "tower": {"kind": "moe", "experts": 4}}, {}, "the tower 'moe' with these"),
    ],
)
def test_what_it_does_not_implement_is_refused(
    model: dict[str, Any], features: dict[str, Any], said: str, tmp_path: Path
) -> None:
    artifact = write(tmp_path, {"dim": 4, "tower": MLP} | model, FEATURES | features)
    with pytest.raises(UserError, match=said):
        write_portable(artifact, tmp_path / "portable")
    assert not (tmp_path / "portable").exists()


@pytest.fixture(scope="module")
def portable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("portable")
    write_portable(write(folder, MODELS["cross"]), folder / "portable")
    return folder / "portable"


def test_scoring_imports_numpy_and_nothing_else(portable: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.ndjson").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS.to_dicts()))
    program = (
        "import sys; from serving.portable.scorer import main; code = main(sys.argv[1:]);"
        "found = {'torch', 'polars', 'pyarrow', 'pydantic', 'scipy', 'models', 'data_pipelines'} & set(sys.modules);"
        "sys.exit(f'imported {found}' if found else code)"
    )
    command = [sys.executable, "-c", program, portable, tmp_path / "rows.ndjson"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True)
    scores = [json.loads(line) for line in done.stdout.splitlines()]
    assert scores == PortableScorer(portable).score(ROWS.to_dicts())


def test_a_csv_is_read_as_training_reads_it(portable: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ROWS.with_columns(tags="[" + pl.col("tags").list.join(", ") + "]").write_csv(tmp_path / "rows.csv")
    assert main([str(portable), str(tmp_path / "rows.csv")]) == 0
    from_csv = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    expected = PortableScorer(portable).score(ROWS.to_dicts())
    np.testing.assert_allclose([row["click"] for row in from_csv], [row["click"] for row in expected], rtol=1e-6)
    (tmp_path / "rows.csv").write_text("user\nu1\n")
    assert main([str(portable), str(tmp_path / "rows.csv")]) == 2
    assert "rows[0]: feature 'item' reads the column 'item', which is not there" in capsys.readouterr().err


def test_the_card_has_metadata_of_the_hub(portable: Path) -> None:
    _, front, text = (portable / "README.md").read_text().split("---\n", 2)
    metadata = yaml.safe_load(front)
    assert metadata["pipeline_tag"] == "tabular-classification"
    assert metadata["model-index"][0]["results"][0]["metrics"] == [{"type": "auc", "name": "auc", "value": 0.75}]
    assert "PortableScorer" in text


def _damaged(portable: Path, tmp_path: Path, name: str, content: bytes) -> Path:
    folder = tmp_path / "damaged"
    folder.mkdir()
    for file in (MODEL, TABLES, DENSE):
        (folder / file).write_bytes(content if file == name else (portable / file).read_bytes())
    return folder


@pytest.mark.parametrize("name", [TABLES, DENSE])
@pytest.mark.parametrize("cut", [0, 7, 30, -1])
def test_a_file_that_was_cut_short_is_refused(portable: Path, tmp_path: Path, name: str, cut: int) -> None:
    folder = _damaged(portable, tmp_path, name, (portable / name).read_bytes()[:cut])
    with pytest.raises(PortableError, match=name):
        PortableScorer(folder)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"data_offsets":[0,', b'"data_offsets":[8,'),
        (b'"shape":[', b'"shape":[-'),
        (b'"dtype":"F32"', b'"dtype":"F64"'),
    ],
)
def test_a_header_that_lies_is_refused(portable: Path, tmp_path: Path, old: bytes, new: bytes) -> None:
    content = (portable / DENSE).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length].replace(old, new, 1)
    lying = len(header).to_bytes(8, "little") + header + content[8 + length :]
    with pytest.raises(PortableError, match="damaged"):
        PortableScorer(_damaged(portable, tmp_path, DENSE, lying))


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model["tables"]["item"].update(rows=10**12),
        lambda model: model["tables"]["item"].update(bits=3),
        lambda model: model["vocabularies"]["item"].extend(map(str, range(100, 200))),
        lambda model: model["network"]["fields"].pop(),
        lambda model: model["network"]["tower"]["layers"].append(["heads.linear", None]),
        lambda model: model["sparse"][0].update(kind="other"),
        lambda model: model.update(portable=1),
        lambda model: model.pop("tasks"),
    ],
)
def test_a_model_that_does_not_fit_its_tensors_is_refused(portable: Path, tmp_path: Path, change: Any) -> None:
    model = json.loads((portable / MODEL).read_text())
    change(model)
    with pytest.raises(PortableError):
        PortableScorer(_damaged(portable, tmp_path, MODEL, json.dumps(model).encode()))


@settings(max_examples=30)
@given(st.lists(st.text(alphabet=" \t\u00a00123456789.-+eTrueFALSntalx"), max_size=20))
def test_text_is_read_as_training_reads_it(texts: list[str]) -> None:
    assert [canonical(text) for text in texts] == values.canonical(pl.Series(texts, dtype=pl.String)).to_list()
    column = pl.DataFrame({"x": pl.Series(texts, dtype=pl.String)})
    found = column.select(values.number(pl.col("x"), pl.String())).to_series().fill_null(np.nan).to_list()
    np.testing.assert_array_equal([number(text) for text in texts], found)
    for delimiter in (None, " "):
        bags = column.select(values.texts(pl.col("x"), pl.String(), delimiter)).to_series().to_list()
        assert [bag_values(text, delimiter) for text in texts] == bags


@settings(max_examples=30)
@given(st.lists(st.floats() | st.integers(-(2**60), 2**60).map(float), max_size=20))
def test_numbers_are_read_as_training_reads_them(numbers: list[float]) -> None:
    frame = pl.DataFrame({"x": pl.Series(numbers, dtype=pl.Float64)})
    assert [canonical(value) for value in numbers] == frame.select(
        values.text(pl.col("x"), pl.Float64())
    ).to_series().to_list()
