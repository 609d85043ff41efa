"""Preparing on a Ray cluster: tasks count values and encode rows, part by part, with the same code as on one machine.

The driver surveys the log, merges counts into vocabularies, computes features of the past, and writes. The log and the
folder of the data set must therefore be readable at the same path on every node.
"""

from collections import deque
from collections.abc import Iterator
from functools import partial

import polars as pl

from data_pipelines.dataset.prepare import Engine, Work
from data_pipelines.runtime import tune_process
from recsys.cluster.connection import processors, ray_cluster

PART_ROWS = 1 << 18


def ray_engine(address: str | None = None) -> Engine:
    """The engine of :func:`data_pipelines.dataset.dataset.prepare` that works on the Ray cluster at ``address``."""
    return partial(_parts, address)


def _parts(address: str | None, rows: pl.LazyFrame, size: int, work: Work) -> Iterator[list[pl.DataFrame]]:
    with ray_cluster(address) as ray:
        task = ray.remote(num_cpus=1, max_retries=-1)(_work)
        shared_work, plan = ray.put(work), ray.put(rows.serialize())
        ahead, running = 2 * processors(ray), deque[object]()
        for start in range(0, max(size, 1), PART_ROWS):
            running.append(task.remote(shared_work, plan, start, PART_ROWS))
            if len(running) > ahead:
                yield ray.get(running.popleft())
        while running:
            yield ray.get(running.popleft())


def _work(work: Work, plan: bytes, start: int, rows: int) -> list[pl.DataFrame]:
    """Runs on a worker of the cluster."""
    import io

    import polars_hash  # noqa: F401  (the plan may hash)

    tune_process()
    return work(pl.LazyFrame.deserialize(io.BytesIO(plan)).slice(start, rows))
