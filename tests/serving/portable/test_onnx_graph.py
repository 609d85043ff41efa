"""ONNX Runtime scores a portable artifact as NumPy does. Skipped where the packages of ONNX are not installed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from portable_examples import MLP, MODELS, ROWS, write

from serving.artifact.artifact import Artifact
from serving.artifact.calibration import Isotonic
from serving.batch.scorer import Scorer
from serving.portable.files import GRAPH, MODEL, PortableError
from serving.portable.scorer import PortableScorer
from serving.portable.write import write_portable

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def compare(artifact: Artifact, folder: Path) -> None:
    """The artifact, NumPy and ONNX Runtime give the same logits and predictions within float32's rounding."""
    write_portable(artifact, folder, graph=True)
    rows = ROWS.to_dicts()
    expected = Scorer(artifact).score(ROWS, logits=True)
    with_numpy, with_onnx = PortableScorer(folder), PortableScorer(folder, "onnx")
    np.testing.assert_allclose(with_onnx.logits(rows), with_numpy.logits(rows), rtol=1e-5, atol=1e-5)
    found = with_onnx.score(rows)
    for at, task in enumerate(with_onnx.tasks):
        logits = expected[f"{task}:logit"].to_numpy()
        np.testing.assert_allclose(with_onnx.logits(rows)[:, at], logits, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose([row[task] for row in found], expected[task], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model", MODELS)
def test_it_computes_what_the_artifact_computes(model: str, tmp_path: Path) -> None:
    compare(write(tmp_path, MODELS[model]), tmp_path / "portable")


def test_expected_levels_of_an_ordinal_task(tmp_path: Path) -> None:
    compare(write(tmp_path, MODELS["cross"], levels=[0, 1, 2.5, 4]), tmp_path / "portable")


@pytest.mark.parametrize("bits", [16, 8, 4, 2])
def test_quantized_pruned_and_factored_tables(bits: int, tmp_path: Path) -> None:
    keep = torch.ones(15, dtype=torch.bool)
    keep[5:9] = False
    kept = {
        "bits": {"tags": bits, "words": bits, "user": bits},
        "keep": {"item": keep},
        "factors": {"tags": torch.randn(3, 4)},
    }
    compare(write(tmp_path, {"dim": 7, "tables": {"tags": {"dim": 4}}, "tower": MLP}, **kept), tmp_path / "portable")


def test_a_model_without_dense_features(tmp_path: Path) -> None:
    features: dict[str, Any] = {"user": {"kind": "id"}, "tags": {"kind": "bag"}}
    compare(write(tmp_path, {"dim": 4, "tower": MLP, "wide": True}, features), tmp_path / "portable")


def test_experts_that_compute_only_their_largest_units(tmp_path: Path) -> None:
    tower = {"kind": "moe", "experts": 3, "top_k": 1, "hidden": 8, "k_winners": 0.25}
    compare(write(tmp_path, {"dim": 4, "interaction": {"kind": "fm"}, "tower": tower}), tmp_path / "portable")


@pytest.fixture(scope="module")
def portable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx")
    write_portable(write(folder, MODELS["cross"]), folder / "portable", graph=True)
    return folder / "portable"


def test_the_graph_holds_no_weights_and_is_valid_onnx(portable: Path) -> None:
    onnx.checker.check_model(str(portable / GRAPH), full_check=True)
    graph = onnx.load(portable / GRAPH, load_external_data=False).graph
    outside = {entry.value for tensor in graph.initializer for entry in tensor.external_data if entry.key == "location"}
    assert outside == {"tables.safetensors", "dense.safetensors"}
    assert sum(len(tensor.raw_data) for tensor in graph.initializer) < 2000
    assert [value.name for value in graph.input][:3] == ["ids.user", "ids.item", "ids.tags"]


def test_its_predictions_are_those_of_the_scorer(portable: Path) -> None:
    """What another language gets from the graph alone: ids padded with -1 in, calibrated probabilities out."""
    session = onnxruntime.InferenceSession(str(portable / GRAPH), providers=["CPUExecutionProvider"])
    scorer = PortableScorer(portable)
    inputs = {
        "ids.user": np.array([2, 0]),
        "ids.item": np.array([3, 1]),
        "ids.tags": np.array([[2, 3, -1], [-1, -1, -1]]),
        "ids.words": np.array([[2], [3]]),
        "ids.bucket": np.array([2, 3]),
        "dense": np.zeros((2, 7), np.float32),
    }
    logits, predictions = session.run(["logits", "predictions"], inputs)
    bags = {"ids.tags": (np.array([2, 3]), np.array([0, 2, 2]))}
    encoded = {
        name.removeprefix("ids."): bags.get(name, (ids.reshape(-1), np.arange(3)))
        for name, ids in inputs.items()
        if name != "dense"
    }
    np.testing.assert_allclose(logits, scorer._with_numpy(encoded, inputs["dense"]), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(predictions[:, 0], 1 / (1 + np.exp(-(0.7 * logits[:, 0] - 0.2))), rtol=1e-5)
    np.testing.assert_array_equal(predictions[:, 1], logits[:, 1])


@settings(max_examples=10)
@given(
    st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=6).map(sorted),
    st.lists(st.floats(-25, 25, width=32), min_size=1, max_size=8),
    st.data(),
)
def test_isotonic_calibration_is_interpolated_as_numpy_does(knots: list[float], logits: list[float], data: Any) -> None:
    from onnx import TensorProto, helper

    from serving.portable.onnx_graph import interpolated
    from serving.portable.onnx_nodes import Graph

    heights = data.draw(st.lists(st.floats(0, 1), min_size=len(knots), max_size=len(knots)).map(sorted))
    graph = Graph({})
    graph.name(interpolated(graph, "x", knots, heights), "y")
    ends = [helper.make_tensor_value_info(name, TensorProto.DOUBLE, ["rows", 1]) for name in ("x", "y")]
    model = graph.model(ends[:1], ends[1:])
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(["y"], {"x": np.array(logits)[:, None]})
    expected = Isotonic(logits=knots, probabilities=heights)(np.array(logits, np.float32))
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-6, atol=1e-6)


def test_what_is_missing_or_damaged_is_said_in_one_sentence(portable: Path, tmp_path: Path) -> None:
    write_portable(write(tmp_path, MODELS["cross"]), tmp_path / "portable")
    with pytest.raises(PortableError, match=r"model\.onnx is missing: export with --format onnx"):
        PortableScorer(tmp_path / "portable", "onnx")
    (tmp_path / "portable" / GRAPH).write_bytes((portable / GRAPH).read_bytes()[:500])
    with pytest.raises(PortableError, match=r"model\.onnx is damaged .*: export it again"):
        PortableScorer(tmp_path / "portable", "onnx")


def test_a_graph_cannot_read_files_of_other_folders(portable: Path, tmp_path: Path) -> None:
    for file in portable.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    model = onnx.load(portable / GRAPH, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = f"../{portable.name}/{entry.value}"
    (tmp_path / GRAPH).write_bytes(model.SerializeToString())
    with pytest.raises(PortableError, match=r"model\.onnx is damaged"):
        PortableScorer(tmp_path, "onnx")


def test_tensors_that_do_not_fit_the_model_are_refused(portable: Path, tmp_path: Path) -> None:
    for file in portable.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    model = json.loads((portable / MODEL).read_text())
    del model["sparse"][1]
    (tmp_path / MODEL).write_text(json.dumps(model))
    with pytest.raises(PortableError):
        PortableScorer(tmp_path, "onnx")
