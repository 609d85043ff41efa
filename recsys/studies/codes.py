"""Sparse codes of a trained table: what each code means, and how well codes find similar items.

Letters: R rows of a table (ids), d its width, C codes, T tags, n neighbours.
"""

from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl
import scipy.sparse as sp
import torch
from pydantic import BaseModel, ConfigDict

from data_pipelines.dataset.dataset import Dataset
from data_pipelines.dataset.matrices import blocks, save, to_csr
from data_pipelines.disk.storage import new_directory
from data_pipelines.errors import UserError
from models.sparsity.codes.autoencoder import AutoencoderConfig, encode, fit
from models.sparsity.codes.dictionary import learn
from recsys.evaluation.evaluate import dataset_of, evaluate
from recsys.runs.checkpoints import load_weights

Floats = npt.NDArray[np.float32]

_NEIGHBOURS = 20
_QUERIES = 1000
_NAMED_ITEMS = 3
_NAMED_TAGS = 2


class CodedTable(BaseModel):
    """The quality of the codes of a table.

    Attributes:
        study: The folder that was written.
        table: Name of the table.
        bytes: Of the codes; ``table_bytes`` of the float32 table.
        codes_in_use: Share of the codes that some row has.
        recall: Recall of the 20 nearest neighbours: by the codes (``codes``), and by vectors of as many bytes (PCA,
            float16; ``equal_bytes``).
        auc: AUC of the ranker with the original table (``table``), and with the table rebuilt from its codes
            (``codes``).
        names: Names of the first codes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    study: Path
    table: str
    bytes: int
    table_bytes: int
    codes_in_use: float
    recall: dict[str, float]
    auc: dict[str, float | None]
    names: list[str]


def code_table(
    run: Path,
    out: Path,
    table: str,
    *,
    method: Literal["autoencoder", "dictionary"] = "autoencoder",
    codes: int = 256,
    active: int = 8,
    dataset: Path | None = None,
) -> CodedTable:
    """Code the rows of ``table`` of a finished run, name the codes, and measure their quality.

    Writes ``codes.npz`` (CSR, one row per id) and ``names.csv`` into ``out``.

    Raises:
        UserError: There is no such table, or more active codes than codes.
    """
    if not 0 < active <= codes:
        raise UserError(f"--active {active} must be between 1 and --codes {codes}.")
    data = Dataset.open(dataset or dataset_of(run))
    weights = load_weights(run)
    if table not in weights.tables:
        raise UserError(f"there is no table {table!r}; the tables are {', '.join(sorted(weights.tables))}.")
    vectors_Rd = weights.tables[table]
    if method == "autoencoder":
        config = AutoencoderConfig(codes=codes, active=active)
        model = fit(vectors_Rd, config)
        offsets, places, values = encode(model, vectors_Rd)
        kept = values.half().float()
        matrix = sp.csr_matrix((kept.numpy(), places.numpy(), offsets.numpy()), shape=(len(vectors_Rd), codes))
        atoms, center = model.decoder_Cd.detach().numpy(), model.center_d.detach().numpy()
        rebuilt_Rd = np.asarray(matrix @ atoms + center, dtype=np.float32)
        size = matrix.nnz * ((1 if codes <= 256 else 2) + 2) + len(vectors_Rd) + 2 * (atoms.size + center.size)
    else:
        code = learn(vectors_Rd.numpy(), atoms=codes, active=active)
        matrix, rebuilt_Rd, size = code.codes, code.rows(), code.bytes
    names = _name_codes(matrix, data, table)
    before = evaluate(weights, data, draws=0).summary()
    weights.tables[table] = torch.from_numpy(rebuilt_Rd)
    after = evaluate(weights, data, draws=0).summary()
    per_row = max(round(size / len(vectors_Rd) / 2), 1)
    recall = {
        "codes": recall_of(vectors_Rd.numpy(), matrix.toarray()),
        "equal_bytes": recall_of(vectors_Rd.numpy(), _principal(vectors_Rd.numpy(), per_row)),
    }
    with new_directory(out, "study", meta={"table": table, "method": method}, replace=out.exists()) as folder:
        save(folder / "codes.npz", matrix, names["name"].to_list())
        names.write_csv(folder / "names.csv")
    return CodedTable(
        study=out,
        table=table,
        bytes=size,
        table_bytes=vectors_Rd.numel() * 4,
        codes_in_use=float((matrix.getnnz(0) > 0).mean()),
        recall=recall,
        auc={"table": before.first.get("auc"), "codes": after.first.get("auc")},
        names=names["name"].to_list()[:10],
    )


def recall_of(vectors_Rd: Floats, other_RC: Floats, *, neighbours: int = _NEIGHBOURS, seed: int = 0) -> float:
    """Share of the nearest neighbours by cosine of ``vectors_Rd`` that are also those of ``other_RC``."""
    queries = np.random.default_rng(seed).permutation(len(vectors_Rd))[:_QUERIES]
    true, found = (_nearest(space, queries, neighbours) for space in (vectors_Rd, other_RC))
    return float(
        np.mean([len(set(a) & set(b)) / neighbours for a, b in zip(true.tolist(), found.tolist(), strict=True)])
    )


def _nearest(space: Floats, queries: npt.NDArray[np.int64], neighbours: int) -> npt.NDArray[np.int64]:
    unit = space / np.maximum(np.linalg.norm(space, axis=1, keepdims=True), 1e-12)
    scores = unit[queries] @ unit.T
    scores[np.arange(len(queries)), queries] = -np.inf
    return np.argpartition(-scores, neighbours, axis=1)[:, :neighbours]


def _principal(vectors_Rd: Floats, width: int) -> Floats:
    centered = vectors_Rd - vectors_Rd.mean(0)
    _, _, right = np.linalg.svd(centered, full_matrices=False)
    narrow: Floats = (centered @ right[:width].T).astype(np.float16).astype(np.float32)
    return narrow


def _name_codes(matrix: sp.csr_matrix, data: Dataset, table: str) -> pl.DataFrame:
    """One row per code: a name from its strongest tags and items, how many rows have it, and both lists.

    Tags are the values of the bags that occur with the items in the train split. Those that are much more frequent for
    a code than for all items come first.
    """
    spec = data.schema.table(table)
    values = data.encoder.vocabulary(table)["value"].cast(pl.String).to_list()
    items = np.array(["null", *["other"] * spec.oov_buckets, *values])
    tags_RT, tag_names = _tags_of(data, table)
    overall_T = np.asarray(tags_RT.mean(0)).ravel() + 1e-3
    columns, rows = matrix.tocsc(), []
    for c in range(matrix.shape[1]):
        column = columns[:, [c]].tocoo()
        strongest = column.row[np.argsort(-column.data)]
        strongest = strongest[strongest >= spec.reserved]
        tags: list[str] = []
        if len(strongest) and len(tag_names):
            positive = columns[:, [c]].maximum(0)  # a dictionary's codes may be negative: those rows do not name it
            weight = (positive.T @ tags_RT).toarray().ravel() / max(positive.sum(), 1e-9)
            lift = np.log((weight + 1e-3) / overall_T) * weight
            tags = [tag_names[t] for t in np.argsort(-lift)[:_NAMED_TAGS] if weight[t] > 1.2 * overall_T[t]]
        best = items[strongest[:_NAMED_ITEMS]].tolist()
        name = ", ".join(tags) or ", ".join(best) or "unused"
        rows.append(
            {"code": c, "name": name, "rows": len(strongest), "items": "; ".join(best), "tags": "; ".join(tags)}
        )
    return pl.DataFrame(rows)


def _tags_of(data: Dataset, table: str) -> tuple[sp.csr_matrix, list[str]]:
    """(R, T) share of an id's train rows that have each tag, over all bags that are not histories."""
    ids = [f.name for f in data.schema.sparse if f.table == table and f.kind == "id"]
    bags = [f.name for f in data.schema.sparse if f.kind == "bag" and f.table != table]
    rows = data.schema.table(table).rows
    if not ids or not bags:
        return sp.csr_matrix((rows, 0)), []
    matrix, names = to_csr(data, "train", [ids[0], *bags])
    chosen = {ids[0], *bags}
    schema = data.schema.model_copy(
        update={"sparse": tuple(f for f in data.schema.sparse if f.name in chosen), "dense": ()}
    )
    where, columns = blocks(schema), matrix.tocsc()
    of_items = columns[:, where[ids[0]]]
    places = np.concatenate([np.arange(where[bag].start, where[bag].stop) for bag in bags])
    counts = np.maximum(np.asarray(of_items.sum(0)).ravel(), 1)
    shares = sp.diags(1 / counts) @ (of_items.T @ (columns[:, places] > 0).astype(np.float32))
    return shares.tocsr(), [names[place].partition("=")[2] for place in places]
