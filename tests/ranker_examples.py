"""A small schema with every kind of feature, batches of it, and ranks as processes; for the tests of several rooms."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torchrec import KeyedJaggedTensor

from data_pipelines.batch import Batch, DenseSpec, Schema, SparseSpec, TableSpec

SCHEMA = Schema(
    tables=(
        TableSpec(name="user", rows=50),
        TableSpec(name="movie", rows=40),
        TableSpec(name="genres", rows=20),
        TableSpec(name="likes.age", rows=10),
        TableSpec(name="tags", rows=30),
        TableSpec(name="items", rows=9),
    ),
    sparse=(
        SparseSpec(name="user", table="user", kind="id"),
        SparseSpec(name="movie", table="movie", kind="id"),
        SparseSpec(name="genres", table="genres", kind="bag"),
        SparseSpec(name="likes.movie", table="movie", kind="history", sequence="likes"),
        SparseSpec(name="likes.genres", table="genres", kind="history", sequence="likes"),
        SparseSpec(name="likes.age", table="likes.age", kind="history", sequence="likes"),
        SparseSpec(name="tags", table="tags", kind="bag", weighted=True),
        SparseSpec(name="items", table="items", kind="bag"),
    ),
    dense=(DenseSpec(name="year", width=1), DenseSpec(name="image", width=4)),
    tasks=("like", "click"),
)


def bags(named: dict[str, Sequence[Sequence[int]]], weights: Sequence[float] | None = None) -> KeyedJaggedTensor:
    """A KeyedJaggedTensor of bags written out by feature and row."""
    return KeyedJaggedTensor.from_lengths_sync(
        keys=list(named),
        values=torch.tensor([i for rows in named.values() for row in rows for i in row], dtype=torch.int32),
        lengths=torch.tensor([len(row) for rows in named.values() for row in rows], dtype=torch.int32),
        weights=None if weights is None else torch.tensor(weights),
    )


def random_batch(rows: int, seed: int = 0, schema: Schema = SCHEMA) -> Batch:
    """Random bags of 0 to 3 ids and histories of 0 to 5 events; the first row's history is empty."""
    generator = torch.Generator().manual_seed(seed)

    def integers(low: int, high: int, count: int) -> list[int]:
        return torch.randint(low, high, (count,), generator=generator).tolist()

    events = [0, *integers(0, 6, rows - 1)]
    named: dict[bool, dict[str, list[list[int]]]] = {False: {}, True: {}}
    for spec in schema.sparse:
        lengths = [1] * rows if spec.kind == "id" else events if spec.sequence else integers(0, 4, rows)
        named[spec.weighted][spec.name] = [integers(0, schema.table(spec.table).rows, n) for n in lengths]
    weights = torch.rand(sum(len(row) for column in named[True].values() for row in column), generator=generator)
    return Batch(
        sparse=bags(named[False]),
        weighted=bags(named[True], weights.tolist()) if named[True] else None,
        dense=torch.randn(rows, schema.dense_width, generator=generator),
        labels=torch.randint(0, 2, (rows, len(schema.tasks)), generator=generator).float(),
        rows=torch.arange(rows),
    )


def take_rows(batch: Batch, start: int, stop: int) -> Batch:
    """Rows ``start`` to ``stop`` of ``batch``."""

    def cut(kjt: KeyedJaggedTensor | None) -> KeyedJaggedTensor | None:
        if kjt is None:
            return None
        parts = [(kjt[key], kjt[key].offsets()) for key in kjt.keys()]  # noqa: SIM118
        weighted = kjt.weights_or_none() is not None
        return KeyedJaggedTensor.from_lengths_sync(
            keys=kjt.keys(),
            values=torch.cat([bag.values()[at[start] : at[stop]] for bag, at in parts]),
            lengths=torch.cat([bag.lengths()[start:stop] for bag, _ in parts]),
            weights=torch.cat([bag.weights()[at[start] : at[stop]] for bag, at in parts]) if weighted else None,
        )

    sparse = cut(batch.sparse)
    assert sparse is not None
    assert batch.labels is not None
    return Batch(sparse, cut(batch.weighted), batch.dense[start:stop], batch.labels[start:stop], batch.rows[start:stop])


def _rank(
    rank: int, world_size: int, nodes: int, folder: str, work: Callable[..., dict[str, Tensor]], args: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size // nodes)}
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    try:
        torch.save(work(*args), f"{folder}/rank{rank}.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()


def on_ranks(
    world_size: int, folder: Path, work: Callable[..., dict[str, Tensor]], *args: Any, nodes: int = 1
) -> list[dict[str, Tensor]]:
    """What ``work(*args)`` gives on each of ``world_size`` processes that share a gloo process group.

    They are told that they run on ``nodes`` machines, as many on each.
    """
    mp.spawn(_rank, (world_size, nodes, str(folder), work, args), nprocs=world_size)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(world_size)]
