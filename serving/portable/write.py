"""From an artifact to a portable one, which :mod:`serving.portable.scorer` scores with NumPy or ONNX Runtime."""

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from data_pipelines.batch import SparseSpec
from data_pipelines.disk.storage import new_directory
from data_pipelines.errors import UserError
from data_pipelines.features.kinds.bag import BagFeature
from data_pipelines.features.kinds.base import Feature
from data_pipelines.features.kinds.id import IdFeature
from data_pipelines.features.kinds.number import NumberFeature
from data_pipelines.features.vocabulary import Slots
from models.layers.activations import KWinners
from models.layers.gates import open_share
from models.layers.interactions.base import Interaction
from models.layers.interactions.cross import CrossNet
from models.layers.interactions.multiplicative import MultiplicativeBlocks
from models.layers.interactions.none import NoInteraction
from models.layers.interactions.pairs import DotInteraction, FactorizationMachine, PairInteraction
from models.layers.outcomes.ordinal import OrdinalTasks
from models.layers.towers import DenseTower, Tower
from models.moe.router import routers
from models.moe.tower import MixtureTower
from models.ranker import Ranker
from models.tables.plan import lookup_plan
from serving.artifact.artifact import Artifact
from serving.artifact.hub_card import hub_card
from serving.artifact.weight_files import FACTOR
from serving.portable.files import DENSE, FORMAT, GRAPH, MODEL, TABLES

_KINDS = {
    CrossNet: "cross",
    MultiplicativeBlocks: "multiplicative",
    NoInteraction: "none",
    FactorizationMachine: "fm",
    DotInteraction: "dot",
}
_USAGE = """```python
from pathlib import Path

from serving.portable.scorer import PortableScorer

scorer = PortableScorer(Path("."))
print(scorer.score([{{{columns}}}]))
```

Scoring needs Python 3.11 and NumPy: `pip install numpy` and `pip install --no-deps sparse-recsys`."""
_USAGE_OF_GRAPH = """

`model.onnx` is the same model for ONNX Runtime: `PortableScorer(Path("."), "onnx")`, or any of its languages."""


def write_portable(artifact: Artifact, out: Path, *, graph: bool = False, replace: bool = False) -> None:
    """Write ``artifact`` as a portable one at ``out``: ids, bags and numbers in, scores out, with NumPy alone.

    The folder holds ``model.json``, ``tables.safetensors`` with the rows as the artifact keeps them,
    ``dense.safetensors`` in float32, and a model card in ``README.md``.

    Args:
        graph: Also write ``model.onnx``, the lookups and the network as an ONNX graph over the same tensors.

    Raises:
        UserError: The model has a part that the portable scorer does not implement; the sentence names it. Or ``out``
            exists and ``replace`` is false, or the package of ONNX, which writes a graph, is not installed.
    """
    _refuse(artifact)
    if graph and find_spec("onnx") is None:
        raise UserError("An ONNX graph needs the package that writes it: pip install 'sparse-recsys[onnx]'.")
    ranker, config = artifact.ranker(), artifact.encoder.config
    lookups = lookup_plan(artifact.model.encoded, artifact.model.ranker).lookups
    wide = {lookup.feature: lookup.table for lookup in lookups if lookup.wide}
    content = {
        "portable": FORMAT,
        "name": artifact.card.name,
        "fingerprint": artifact.fingerprint,
        "keys": list(dict.fromkeys(config.keys)),
        "tasks": [_task(artifact, name) for name in artifact.encoder.schema.tasks],
        "conditional": artifact.model.conditional,
        "score": artifact.model.score,
        "sparse": [_sparse(artifact, spec, wide) for spec in artifact.encoder.schema.sparse],
        "dense": [_dense(artifact, spec.name) for spec in artifact.encoder.schema.dense],
        "tables": {name: entry.model_dump() for name, entry in artifact.model.tables.items()},
        "vocabularies": {
            name: artifact.encoder.vocabulary(name)["value"].to_list()
            for name, table in artifact.encoder.tables.items()
            if not isinstance(table, Slots)
        },
        "network": _network(artifact, ranker),
    }
    columns = ", ".join(f'"{name}": ...' for name in sorted(artifact.encoder.served.row_columns))
    usage = _USAGE.format(columns=columns) + (_USAGE_OF_GRAPH if graph else "")
    kinds = {name: str(task.kind) for name, task in config.tasks.items()}
    with new_directory(out, "portable", meta={"artifact": artifact.fingerprint}, replace=replace) as folder:
        save_file(_rows(artifact), folder / TABLES)
        save_file(_tensors(artifact, ranker), folder / DENSE)
        if graph:
            from serving.portable.onnx_graph import onnx_model

            (folder / GRAPH).write_bytes(onnx_model(folder, content).SerializeToString())
        (folder / MODEL).write_text(json.dumps(content, ensure_ascii=False))
        (folder / "README.md").write_text(hub_card(artifact.card, kinds, usage))


def _refuse(artifact: Artifact) -> None:
    plan = artifact.encoder.served
    why = []
    if artifact.model.activations is not None:
        why.append("dense layers that compute in int8 (export with sparsity.quantization.activations=null)")
    if plan.row_joins:
        why.append("side tables (data.joins)")
    for name, feature in plan.features.items():
        if not isinstance(feature, IdFeature | BagFeature | NumberFeature):
            why.append(f"the feature {name!r}, which is neither an id, nor a bag, nor a number")
        elif isinstance(feature, BagFeature) and feature.config.weights is not None:
            why.append(f"the weights of the bag {name!r}")
    why += [f"several OOV buckets of the table {t.name!r}" for t in artifact.encoder.schema.tables if t.oov_buckets > 1]
    why += [f"managed rows of the table {name!r}" for name, t in artifact.model.ranker.tables.items() if t.rows]
    if why:
        raise UserError(
            f"{artifact.path} cannot be made portable, because the portable scorer does not implement "
            f"{'; '.join(why)}: leave these out (train.features), or score with the artifact itself."
        )


def _task(artifact: Artifact, name: str) -> dict[str, Any]:
    calibration = artifact.model.calibration.get(name)
    return {
        "name": name,
        "kind": artifact.encoder.config.tasks[name].kind,
        "calibration": None if calibration is None else calibration.model_dump(),
        "after": artifact.encoder.config.tasks[name].after,
    }


def _feature(artifact: Artifact, name: str) -> Feature[Any]:
    return artifact.encoder.plan.feature(name)


def _sparse(artifact: Artifact, spec: SparseSpec, wide: Mapping[str, str]) -> dict[str, Any]:
    feature = _feature(artifact, spec.name)
    found: dict[str, Any] = {
        "name": spec.name,
        "column": feature.config.column,
        "kind": spec.kind,
        "table": spec.table,
        "wide": wide.get(spec.name),
        "pooling": artifact.model.ranker.pooling_of(spec),
        "value": None,
    }
    if isinstance(feature, NumberFeature):
        numbers = artifact.encoder.numbers[feature.name]
        return found | {"kind": "bucket", "clip": feature.config.clip, "numbers": numbers}
    if isinstance(feature, BagFeature):
        return found | {"delimiter": feature.config.delimiter, "max_length": feature.config.max_length}
    assert isinstance(feature, IdFeature)
    return found | ({"value": feature.config.serve} if feature.config.served else {})


def _dense(artifact: Artifact, name: str) -> dict[str, Any]:
    config = _feature(artifact, name).config
    return {
        "name": name,
        "column": config.column,
        "transform": config.transform,
        "pieces": config.buckets if config.transform == "piecewise" else 1,
        "clip": config.clip,
        "indicator": config.indicator,
        "numbers": artifact.encoder.numbers.get(name, []),
    }


def _rows(artifact: Artifact) -> dict[str, Tensor]:
    """(R, W) uint8 of each table."""
    stored = artifact.weights.rows
    return {name: stored.rows_of(name).clone() for name in stored.tables}


def _tensors(artifact: Artifact, ranker: Ranker) -> dict[str, Tensor]:
    """Every number that the network reads, as float32."""
    state = {name: tensor for name, tensor in ranker.dense_state().items() if tensor.is_floating_point()}
    found = {name: tensor.float().contiguous() for name, tensor in state.items() if not name.endswith("duty_H")}
    found |= {f"{FACTOR}{name}": factor.contiguous() for name, factor in artifact.weights.dense.factors.items()}
    for name, router in routers(ranker).items():
        found[f"{name}.mask_E"] = torch.where(router.active_E, 0.0, -torch.inf)
    return {name: tensor.clone() for name, tensor in found.items()}


def _network(artifact: Artifact, ranker: Ranker) -> dict[str, Any]:
    gates = None
    if ranker.gates is not None:
        sparse, dense = open_share(ranker.gates.sparse_F), open_share(ranker.gates.dense_G)
        gates = {
            "sparse": dict(zip((spec.name for spec in ranker.schema.sparse), sparse.tolist(), strict=True)),
            "dense": dense.repeat_interleave(ranker.gates.widths).tolist(),
        }
    return {
        "fields": ranker.fields,
        "gates": gates,
        "dense_field": isinstance(ranker.interaction, PairInteraction) and ranker.interaction.dense_field is not None,
        "norm": ranker.norm is not None,
        "interaction": _interaction(artifact, ranker.interaction),
        "tower": _tower(artifact, ranker.tower),
        "context": list(ranker.config.context),
        "dense_columns": [[name, at.start, at.stop] for name, at in ranker.schema.dense_columns.items()],
        "additive": [] if ranker.additive is None else list(ranker.additive.terms),
        "wide": ranker.wide is not None,
        "chains": ranker.schema.chains,
        "ordinal": [] if ranker.ordinal is None else _ordinal(ranker.ordinal),
    }


def _ordinal(tasks: OrdinalTasks) -> list[dict[str, Any]]:
    return [
        {"task": t, "levels": part.levels_K.tolist(), "thresholds": part.thresholds().tolist()}
        for t, part in tasks.parts.items()
    ]


def _interaction(artifact: Artifact, interaction: Interaction) -> dict[str, Any]:
    kind = _KINDS.get(type(interaction))
    if kind is None:
        raise _unknown(artifact, f"the interaction {interaction.config.kind!r}")
    layers = []
    if isinstance(interaction, CrossNet | MultiplicativeBlocks):
        for index, layer in enumerate(interaction.layers):
            inner = [f".{at}" for at, _ in enumerate(layer)] if isinstance(layer, nn.Sequential) else [""]
            layers.append([f"interaction.layers.{index}{name}" for name in inner])
    fields = interaction.fields if isinstance(interaction, PairInteraction) else 0
    return {"kind": kind, "layers": layers, "fields": fields}


def _tower(artifact: Artifact, tower: Tower) -> dict[str, Any]:
    if type(tower) is DenseTower:
        layers: list[list[Any]] = []
        for name, layer in tower.layers.named_children():
            if isinstance(layer, nn.Linear):
                layers.append([f"tower.layers.{name}", None])
            elif isinstance(layer, KWinners):
                layers[-1][1] = layer.k
        return {"kind": "mlp", "layers": layers}
    if type(tower) is not MixtureTower or tower.tasks > 1:
        raise _unknown(artifact, f"the tower {getattr(tower.config, 'kind', '')!r} with these model.tasks")
    blocks = [
        {
            "name": f"tower.mixtures.{at}",
            "norm": f"tower.norms.{at}" if tower.config.normalize else None,
            "top_k": block.router.top_k,
            "gate": block.router.gate,
            "shared": block.shared is not None,
            "winners": block.experts.activation.k if isinstance(block.experts.activation, KWinners) else None,
        }
        for at, block in enumerate(tower.blocks())
    ]
    return {"kind": "moe", "blocks": blocks}


def _unknown(artifact: Artifact, what: str) -> UserError:
    return UserError(
        f"{artifact.path} cannot be made portable, because the portable scorer does not implement {what}: score with "
        "the artifact itself."
    )
