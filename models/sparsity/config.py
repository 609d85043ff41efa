"""The ``sparsity`` block: which levers are on, and the levers it builds."""

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel

from models.sparsity.activations import DropConnect, DropConnectConfig, KWinnersConfig
from models.sparsity.dynamic_sparse import DynamicSparse, DynamicSparseConfig, FixedMask, FixedMaskConfig
from models.sparsity.feature_gates import FeatureGatesConfig, FeatureSelection
from models.sparsity.ftrl import Ftrl, FtrlConfig
from models.sparsity.groups import GroupConfig, GroupLasso
from models.sparsity.l1 import L1, L1Config
from models.sparsity.lever import Lever, LeverConfig
from models.sparsity.low_rank import LowRank, LowRankConfig
from models.sparsity.pep import Pep, PepConfig
from models.sparsity.post_pruning import PostPruning, PostPruningConfig
from models.sparsity.precision import Quantization, QuantizationConfig
from models.sparsity.row_pruning import RowPruning, RowPruningConfig
from models.sparsity.unit_pruning import UnitPruning, UnitPruningConfig
from models.sparsity.weight_pruning import WeightPruning, WeightPruningConfig


class SparsityConfig(LeverConfig):
    """Levers by name; a lever that is absent is off. They work alone or together, in the order of these keys."""

    feature_gates: FeatureGatesConfig | None = None
    k_winners: KWinnersConfig | None = None
    dropconnect: DropConnectConfig | None = None
    pep: PepConfig | None = None
    l1: L1Config | None = None
    ftrl: FtrlConfig | None = None
    group: GroupConfig | None = None
    row_pruning: RowPruningConfig | None = None
    unit_pruning: UnitPruningConfig | None = None
    weight_pruning: WeightPruningConfig | None = None
    dynamic_sparse: DynamicSparseConfig | None = None
    fixed_mask: FixedMaskConfig | None = None
    low_rank: LowRankConfig | None = None
    quantization: QuantizationConfig | None = None
    post_pruning: PostPruningConfig | None = None


_LEVERS: dict[str, Callable[[Any], Lever]] = {
    "feature_gates": FeatureSelection,
    "dropconnect": DropConnect,
    "pep": Pep,
    "l1": L1,
    "ftrl": Ftrl,
    "group": GroupLasso,
    "row_pruning": RowPruning,
    "unit_pruning": UnitPruning,
    "weight_pruning": WeightPruning,
    "dynamic_sparse": DynamicSparse,
    "fixed_mask": FixedMask,
    "low_rank": LowRank,
    "quantization": Quantization,
    "post_pruning": PostPruning,
}


def build_levers(config: SparsityConfig) -> list[Lever]:
    """The levers that ``config`` switches on, in its order."""
    settings = ((lever, getattr(config, name)) for name, lever in _LEVERS.items())
    return [lever(chosen) for lever, chosen in settings if chosen is not None]


def shape_model(experiment: Mapping[str, Any]) -> dict[str, Any]:
    """An experiment with what levers ask of the ranker's shape in ``model``: feature gates, k-winners in the tower."""
    blocks = {name: _mapping(experiment, name) for name in ("sparsity", "model")}
    gates, winners = (_mapping(blocks["sparsity"], name) for name in ("feature_gates", "k_winners"))
    if gates:
        blocks["model"]["gates"] = True
    if winners:
        blocks["model"]["tower"] = (
            {"kind": "moe"} | _mapping(blocks["model"], "tower") | {"k_winners": winners.get("density")}
        )
    return dict(experiment) | {"model": blocks["model"]} if gates or winners else dict(experiment)


def _mapping(block: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = block.get(name)
    if isinstance(value, BaseModel):
        value = value.model_dump()
    return dict(value) if isinstance(value, Mapping) else {}
