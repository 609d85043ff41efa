"""The ``sparsity`` block: which levers are on, and the levers it builds."""

from models.sparsity.activations import DropConnect, DropConnectConfig
from models.sparsity.dynamic_sparse import DynamicSparse, DynamicSparseConfig, FixedMask, FixedMaskConfig
from models.sparsity.lever import Lever, LeverConfig
from models.sparsity.row_pruning import RowPruning, RowPruningConfig
from models.sparsity.weight_pruning import WeightPruning, WeightPruningConfig


class SparsityConfig(LeverConfig):
    """Levers by name; one that is absent is off. They work alone or together, in the order they stand here."""

    dropconnect: DropConnectConfig | None = None
    row_pruning: RowPruningConfig | None = None
    weight_pruning: WeightPruningConfig | None = None
    dynamic_sparse: DynamicSparseConfig | None = None
    fixed_mask: FixedMaskConfig | None = None


def build_levers(config: SparsityConfig) -> list[Lever]:
    """The levers that ``config`` switches on, in its order."""
    levers: list[Lever] = []
    if config.dropconnect:
        levers.append(DropConnect(config.dropconnect))
    if config.row_pruning:
        levers.append(RowPruning(config.row_pruning))
    if config.weight_pruning:
        levers.append(WeightPruning(config.weight_pruning))
    if config.dynamic_sparse:
        levers.append(DynamicSparse(config.dynamic_sparse))
    if config.fixed_mask:
        levers.append(FixedMask(config.fixed_mask))
    return levers
