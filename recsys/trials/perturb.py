"""Perturbation of features of a trained model at test time: shuffled among rows, or set to null.

Letters: N rows, P positions of ids.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from data_pipelines.batch import NULL_ID, Schema
from data_pipelines.dataset.blocks import Bags, Block, EventSlices
from models.tables.plan import OOV_ID

Order = NDArray[np.int64]
_ASSOCIATED = 0.2
_MOST_PARTNERS = 2


def schema_features(schema: Schema, features: Sequence[str]) -> set[str]:
    """Names in ``schema`` of features named as in the config: a history has one for each of its parts."""
    wanted = set(features)
    return {name for name in schema.feature_names if name in wanted or name.split(".")[0] in wanted}


def shuffled(block: Block, schema: Schema, features: Sequence[str], order_N: Order) -> Block:
    """``block`` with the values of ``features`` in row i taken from row ``order_N[i]``; they stay together."""
    names = schema_features(schema, features)
    id_matrix, dense = block.id_matrix.copy(), block.dense.copy()
    for name in names & block.ids.keys():
        id_matrix[block.ids[name]] = block.id_matrix[block.ids[name], order_N]
    for name, columns in schema.dense_columns.items():
        if name in names:
            dense[:, columns] = block.dense[order_N, columns]
    bags = {name: _take(bag, order_N) if name in names else bag for name, bag in block.bags.items()}
    pasts = {name: _reorder(past, order_N) if name in features else past for name, past in block.pasts.items()}
    return replace(block, id_matrix=id_matrix, dense=dense, bags=bags, pasts=pasts)


def masked(block: Block, schema: Schema, features: Sequence[str], *, oov: bool = False) -> Block:
    """``block`` with ``features`` null in every row: the null id, empty bags and histories, zeros.

    With ``oov`` every id becomes the first OOV id instead, and bags and histories keep their lengths.
    """
    names = schema_features(schema, features)
    id_matrix, dense = block.id_matrix.copy(), block.dense.copy()
    for name in names & block.ids.keys():
        id_matrix[block.ids[name]] = OOV_ID if oov else NULL_ID
    for name, columns in schema.dense_columns.items():
        if name in names:
            dense[:, columns] = 0
    bags = {name: _without(bag, oov) if name in names else bag for name, bag in block.bags.items()}
    pasts = {name: _forgotten(past, oov) if name in features else past for name, past in block.pasts.items()}
    return replace(block, id_matrix=id_matrix, dense=dense, bags=bags, pasts=pasts)


def random_order(rows: int, seed: int, strata_N: NDArray[np.int64] | None = None) -> Order:
    """A random permutation; with ``strata_N`` only rows of the same stratum change places."""
    chance_N = np.random.default_rng(seed).random(rows)
    if strata_N is None:
        return np.argsort(chance_N)
    order = np.empty(rows, dtype=np.int64)
    order[np.argsort(strata_N, kind="stable")] = np.lexsort((chance_N, strata_N))
    return order


def strata(block: Block, schema: Schema, features: Sequence[str]) -> tuple[NDArray[np.int64], list[str]]:
    """Strata of rows with equal values of the features correlated with ``features``, and the names of these features.

    Shuffling within strata keeps the information of the other features (conditional permutation importance; Strobl et
    al., 2008, doi:10.1186/1471-2105-9-307). Correlation is measured by Cramér's V.
    """
    codes = row_codes(block, schema)
    own = schema_features(schema, features)
    partners: dict[str, float] = {}
    for name, code_N in codes.items():
        if name not in own:
            partners[name] = max((cramers_v(codes[mine], code_N) for mine in own), default=0.0)
    chosen = [name for name in sorted(partners, key=lambda n: -partners[n]) if partners[name] >= _ASSOCIATED]
    chosen = chosen[:_MOST_PARTNERS]
    stratum_N = np.zeros(len(block), dtype=np.int64)
    for name in chosen:
        stratum_N = np.unique(stratum_N * (codes[name].max() + 1) + codes[name], return_inverse=True)[1].reshape(-1)
    return stratum_N, chosen


def row_codes(block: Block, schema: Schema) -> dict[str, NDArray[np.int64]]:
    """One category per row and feature: the id, the bag's ids, the decile of a number, the length of a history."""
    codes: dict[str, NDArray[np.int64]] = {
        name: block.id_matrix[row].astype(np.int64) for name, row in block.ids.items()
    }
    codes |= {name: _bag_code(bag) for name, bag in block.bags.items()}
    for name, past in block.pasts.items():
        for feature in schema.sparse:
            if feature.sequence == name:
                codes[feature.name] = np.log2(past.lengths + 1).astype(np.int64)
    for name, columns in schema.dense_columns.items():
        first_N = block.dense[:, columns][:, 0]
        edges = np.unique(np.quantile(first_N, np.linspace(0, 1, 11)[1:-1]))
        codes[name] = np.searchsorted(edges, first_N, side="right").astype(np.int64)
    return codes


def cramers_v(a_N: NDArray[np.int64], b_N: NDArray[np.int64]) -> float:
    """Association of two categories in [0, 1], free of the bias of rare values (Bergsma, 2013)."""
    rows = len(a_N)
    a_N, b_N = (np.unique(code, return_inverse=True)[1].reshape(-1) for code in (a_N, b_N))
    a_count, b_count = np.bincount(a_N), np.bincount(b_N)
    if rows < 2 or len(a_count) < 2 or len(b_count) < 2:
        return 0.0
    cells, cell_count = np.unique(a_N.astype(np.int64) * len(b_count) + b_N, return_counts=True)
    squares = cell_count.astype(float) ** 2 / (a_count[cells // len(b_count)] * b_count[cells % len(b_count)])
    a, b = len(a_count), len(b_count)
    phi2 = max(0.0, float(squares.sum()) - 1 - (a - 1) * (b - 1) / (rows - 1))
    most = min(a - (a - 1) ** 2 / (rows - 1), b - (b - 1) ** 2 / (rows - 1)) - 1
    return float(np.sqrt(phi2 / most)) if most > 0 else 0.0


def _without(bag: Bags, oov: bool) -> Bags:
    return replace(bag, values=np.full_like(bag.values, OOV_ID)) if oov else replace(bag, offsets=bag.offsets * 0)


def _forgotten(past: EventSlices, oov: bool) -> EventSlices:
    if oov:
        return replace(past, events={name: np.full_like(ids, OOV_ID) for name, ids in past.events.items()})
    return replace(past, lengths=np.zeros_like(past.lengths))


def _take(bag: Bags, order_N: Order) -> Bags:
    values, lengths, weights = bag.take(order_N)
    return Bags(values, np.concatenate([[0], np.cumsum(lengths)]), weights)


def _reorder(past: EventSlices, order_N: Order) -> EventSlices:
    now = None if past.now is None else past.now[order_N]
    return replace(past, starts=past.starts[order_N], lengths=past.lengths[order_N], now=now)


def _bag_code(bag: Bags) -> NDArray[np.int64]:
    """A number that is the same for bags of the same ids in any order."""
    mixed_P = (bag.values.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed_P ^= mixed_P >> np.uint64(29)
    sums = np.concatenate([[np.uint64(0)], np.cumsum(mixed_P, dtype=np.uint64)])
    code_N = sums[bag.offsets[1:]] - sums[bag.offsets[:-1]]
    return np.unique(code_N, return_inverse=True)[1].reshape(-1).astype(np.int64)
