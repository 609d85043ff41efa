"""Artifacts with random weights whose models a portable artifact can hold: every interaction and tower of ours."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import torch

from data_pipelines.features.config import DataConfig
from data_pipelines.features.encoder import Encoder
from data_pipelines.features.plan import Plan
from models.ranker import Ranker, RankerConfig
from models.tables.plain import PlainTables
from models.tables.plan import lookup_plan
from models.weights import Weights
from serving.artifact.artifact import Artifact, served_encoder, write_artifact
from serving.artifact.calibration import Calibration, Platt
from serving.artifact.card import ModelCard, SplitMetrics
from serving.artifact.outputs import Outputs
from serving.formula import Formula

ROWS = pl.DataFrame(
    {
        "user": [None if i == 5 else f" u{i % 9}" for i in range(60)],
        "item": [i % 13 for i in range(60)],
        "tags": [[f"t{(i * k) % 11}" for k in range(i % 5)] for i in range(60)],
        "words": ["" if i % 6 == 0 else "|".join(f"w{(i + k) % 7}" for k in range(i % 4)) for i in range(60)],
        "price": [None if i % 7 == 0 else i * 1.5 - 20 for i in range(60)],
        "age": [f" {i}.0" if i % 4 else "unknown" for i in range(60)],
        "place": [i % 3 for i in range(60)],
        "click": [i % 2 for i in range(60)],
        "stars": [float(i % 5) for i in range(60)],
        "buy": [i % 4 // 3 for i in range(60)],
    }
)
CARD = ModelCard(name="tiny", metrics={"test": SplitMetrics(tasks={"click": {"auc": 0.75}})}, versions={"torch": "2"})
FEATURES: dict[str, Any] = {
    "user": {"kind": "id", "min_count": 7},
    "item": {"kind": "id"},
    "tags": {"kind": "bag", "max_length": 3},
    "words": {"kind": "bag", "delimiter": "|"},
    "price": {"kind": "number", "transform": "standardize", "clip": [-10, 50], "indicator": True},
    "bucket": {"kind": "number", "column": "price", "transform": "buckets", "buckets": 6},
    "age": {"kind": "number", "transform": "log1p"},
    "bends": {"kind": "number", "column": "price", "transform": "piecewise", "buckets": 3, "indicator": True},
}


def write(
    folder: Path,
    model: dict[str, Any],
    features: dict[str, Any] = FEATURES,
    *,
    score: str | None = None,
    levels: Sequence[float] = (),
    **kept: Any,
) -> Artifact:
    """An artifact with random weights, one of whose tasks comes after another one; with ``levels`` one is ordinal."""
    stars = {"kind": "ordinal", "levels": levels} if levels else {"kind": "regression"}
    tasks = {
        "click": {"column": "click"},
        "stars": {"column": "stars", **stars},
        "buy": {"column": "buy", "after": "click"},
    }
    data = DataConfig.model_validate({"log": "none", "tasks": tasks, "features": features, "keys": ["user"]})
    encoder, config = Encoder.fit(Plan.of(data), ROWS.lazy()), RankerConfig.model_validate(model)
    torch.manual_seed(0)
    tables = {t.name: torch.randn(t.rows, t.dim) for t in lookup_plan(encoder.schema, config).tables}
    ranker = Ranker(config, encoder.schema, PlainTables(encoder.schema, config, tables, {}, {}))
    dense = {name: value + 0.1 if value.is_floating_point() else value for name, value in ranker.dense_state().items()}
    for name, factor in kept.get("factors", {}).items():
        tables[name] = tables[name][:, : len(factor)].contiguous()
    weights = Weights(config, encoder.schema, tables, dense, **kept)
    calibration: dict[str, Calibration] = {"click": Platt(slope=0.7, intercept=-0.2)}
    served = served_encoder(weights, encoder)
    formula = None if score is None else Formula.parse(score, encoder.schema.tasks)
    outputs = Outputs(served.config.tasks, calibration, conditional=score is not None, score=formula)
    write_artifact(weights, served, None, CARD, folder / "artifact", outputs=outputs)
    return Artifact.open(folder / "artifact")


MLP = {"kind": "mlp", "hidden": [8, 6]}
MODELS: dict[str, dict[str, Any]] = {
    "cross": {"dim": 4, "tower": MLP, "wide": True},
    "low rank": {"dim": 4, "interaction": {"kind": "cross", "rank": 2}, "tower": {**MLP, "k_winners": 0.5}},
    "fm": {"dim": 4, "interaction": {"kind": "fm"}, "tower": MLP, "gates": True},
    "dot": {"dim": 4, "interaction": {"kind": "dot"}, "tower": MLP, "batch_norm": True, "pooling": {"tags": "sum"}},
    "multiplicative": {"dim": 4, "interaction": {"kind": "multiplicative"}, "tower": {"kind": "mlp", "hidden": []}},
    "experts": {
        "dim": 4,
        "interaction": {"kind": "none"},
        "tower": {"kind": "moe", "experts": 4, "top_k": 2, "hidden": 8, "blocks": 2, "shared": True},
        "context": ["user", "price"],
    },
    "biased experts": {
        "dim": 4,
        "tower": {"kind": "moe", "experts": 4, "hidden": 8, "gate": "sigmoid", "balance": "bias", "normalize": False},
    },
}
