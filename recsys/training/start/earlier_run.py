"""Warm start from an earlier run, whose vocabularies may have grown since.

Letters: R rows of a table, d its width.
"""

from pathlib import Path

import torch
from torch import Tensor

from data_pipelines.dataset.dataset import Dataset
from data_pipelines.disk.storage import open_directory
from data_pipelines.errors import UserError
from models.tables.lookup import SparseTables
from models.tables.plan import OOV_ID
from models.tables.rows import fill_tables, grow_table
from recsys.runs.checkpoints import CHECKPOINTS, FINAL, MODEL, load_checkpoint, load_weights, stored_tensors
from recsys.training.model_state import ModelState


def start_from_run(state: ModelState, run: Path, data: Dataset) -> None:
    """Fill a model with the final weights of ``run``: before its first step it gives the same scores as that run.

    Rows of new values start as the mean of the OOV rows, which represented them so far; so do rows that the run had
    pruned. Optimizers start from zero.

    Raises:
        UserError: ``run`` has not finished, has another model, or ids of its data set mean something else in ``data``.
    """
    old = load_weights(run)
    known = open_directory(run, "run", verify="sizes").meta["dataset_fingerprint"]
    if known not in (data.manifest.fingerprint, *data.lineage):
        raise UserError(
            f"train.start: {run} was trained on another data set, which {data.path} does not extend, so its ids have "
            "other meanings: prepare with --extend and that data set, or start from random."
        )
    tables = state.ranker.tables
    assert isinstance(tables, SparseTables)
    grown: dict[str, Tensor] = {}
    for layout in tables.layouts:
        rows_Rd = old.tables.get(layout.name)
        _check_shape(run, layout.name, None if rows_Rd is None else (rows_Rd.shape[1],), (layout.dim,))
        assert rows_Rd is not None
        if layout.vocabulary in old.keep:
            rows_Rd = torch.where(old.keep[layout.vocabulary].unsqueeze(1), rows_Rd, rows_Rd[OOV_ID])
        reserved = old.schema.table(layout.vocabulary).reserved
        grown[layout.name] = grow_table(rows_Rd, layout.rows, reserved=reserved)
    path = run / CHECKPOINTS / FINAL
    stored = stored_tensors(path)
    dense = {name: tensor for name, tensor in state.model_tensors().items() if not name.startswith(f"{MODEL}tables.")}
    for name, tensor in dense.items():
        there = tuple(stored[name].size) if name in stored else None
        _check_shape(run, name.removeprefix(MODEL), there, tuple(tensor.size()))
    fill_tables(state.ranker, grown)
    load_checkpoint(path, dense, verify=False)  # `load_weights` has compared its checksums


def _check_shape(run: Path, name: str, old: tuple[int, ...] | None, new: tuple[int, ...]) -> None:
    if old != new:
        there = "is not there" if old is None else f"has shape {old} there"
        raise UserError(
            f"train.start: {run} has another model: {name!r} {there} and {new} here; train with its `model` and "
            "features, or start from random."
        )
