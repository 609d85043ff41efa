"""Removing whole features from a trained ranker without changing its logits.

A feature whose gate is zero adds zeros to the row that interaction and tower read. If columns of zeros can be removed
from the parts (a cross or no interaction, and a dense tower), the feature is removed from the matrices and the schema.
Otherwise (zeros change the layer norms of a mixture) only its table is removed: all of its vocabulary is pruned, and
each of the few remaining rows stores one value.

Letters: D width of the row that the ranker reads.
"""

from collections.abc import Collection
from typing import TYPE_CHECKING

import torch

from data_pipelines.batch import Schema, SparseSpec
from models.ranker import feature_widths
from models.tables.config import Pooling
from models.tables.plan import lookup_plan
from models.tables.poolings import SIMPLE

if TYPE_CHECKING:
    from models.weights import Weights


def drop_features(weights: "Weights", names: Collection[str]) -> None:
    """Remove features whose contribution to the ranker is zero."""
    if weights.dense_ranker().narrows_inputs:
        read_elsewhere = _attended(weights)
        _drop_columns(weights, {name for name in names if name not in read_elsewhere})
    _empty_unread_tables(weights, names)


def _attended(weights: "Weights") -> set[str]:
    """All sparse features if a pooling reads whole histories, otherwise none."""
    config, features = weights.config, weights.schema.sparse
    by_sequence = [config.pooling_of(feature) not in SIMPLE for feature in features]
    return {feature.name for feature in features} if any(by_sequence) else set()


def _drop_columns(weights: "Weights", names: Collection[str]) -> None:
    schema, config = weights.schema, weights.config
    if not names or set(schema.feature_names) <= set(names):
        return
    kept_D = torch.cat(
        [torch.full((width,), name not in names) for name, width in feature_widths(config, schema).items()]
    ).nonzero()[:, 0]
    kept_sparse, kept_dense = (
        torch.tensor([feature.name not in names for feature in features], dtype=torch.bool)
        for features in (schema.sparse, schema.dense)
    )
    with weights.narrowing() as ranker:
        ranker.narrow_inputs(kept_D)
        if ranker.gates is not None:
            ranker.gates.keep(kept_sparse, kept_dense)
        if ranker.additive is not None:
            ranker.additive.drop(names)
    sparse = tuple(f for f in schema.sparse if f.name not in names)
    read = {feature.table for feature in sparse}
    weights.schema = Schema(
        tables=tuple(table for table in schema.tables if table.name in read),
        sparse=sparse,
        dense=tuple(f for f in schema.dense if f.name not in names),
        tasks=schema.tasks,
    )
    weights.config = weights.config.model_copy(
        update={
            "tables": {name: table for name, table in config.tables.items() if name in read},
            "pooling": _known_poolings(config.pooling, sparse),
        }
    )
    names_left = {layout.name for layout in lookup_plan(weights.schema, weights.config).tables}
    for by_table in (weights.tables, weights.factors, weights.bits):
        for name in set(by_table) - names_left:
            del by_table[name]
    weights.keep = {name: mask for name, mask in weights.keep.items() if name in read}


def _known_poolings(pooling: dict[str, Pooling], sparse: tuple[SparseSpec, ...]) -> dict[str, Pooling]:
    known = {feature.name for feature in sparse} | {feature.sequence for feature in sparse}
    return {name: value for name, value in pooling.items() if name in known}


def _empty_unread_tables(weights: "Weights", names: Collection[str]) -> None:
    """Prune the vocabulary of tables that only dropped features read, and store each remaining row as a single zero."""
    attended = _attended(weights)
    for table in weights.schema.tables:
        readers = {feature.name for feature in weights.schema.sparse if feature.table == table.name}
        if table.oov_buckets == 1 and readers <= set(names) and not readers & attended:
            weights.keep[table.name] = torch.arange(table.rows) < table.reserved
            for layout in lookup_plan(weights.schema, weights.config).tables:
                if layout.vocabulary == table.name:
                    weights.tables[layout.name] = torch.zeros(table.rows, 1)
                    weights.factors[layout.name] = torch.zeros(1, layout.dim)
