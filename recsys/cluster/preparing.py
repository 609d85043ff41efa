"""Preparing on a Ray cluster: tasks do the work on parts of a log, with the same code as on one machine.

The log and the folder of the data set must be readable at the same path on every node.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any, TypeVar

from data_pipelines import extensions
from data_pipelines.disk.parallel import Engine
from data_pipelines.errors import UserError
from data_pipelines.runtime import tune_process
from recsys.cluster.connection import processors, ray_cluster

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def ray_engine(address: str | None = None) -> Iterator[Engine]:
    """The engine of :func:`data_pipelines.dataset.dataset.prepare` that works on the Ray cluster at ``address``."""
    with ray_cluster(address) as ray:
        yield partial(_results, ray)


def _results(ray: Any, work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    task = ray.remote(num_cpus=1, max_retries=-1)(_work)
    shared, modules = (ray.put(work),), extensions.loaded()  # in a tuple, so that the worker decides when to get it
    ahead, running = 2 * processors(ray), deque[Any]()
    for item in items:
        running.append(task.remote(modules, shared, item))
        if len(running) > ahead:
            yield _result(ray, running.popleft())
    while running:
        yield _result(ray, running.popleft())


def _result(ray: Any, task: Any) -> Any:
    found, fault = ray.get(task)
    if fault is not None:
        raise UserError(fault)
    return found


def _work(modules: Sequence[str], shared: tuple[Any], item: Any) -> tuple[Any, str | None]:
    """Runs on a worker of the cluster. Errors that the user can fix are returned as their messages."""
    try:
        extensions.load(modules)
        return _got(shared)(item), None
    except UserError as error:
        return None, f"on a node of the cluster, {error}"


@lru_cache(maxsize=1)
def _got(shared: tuple[Any]) -> Callable[[Any], Any]:
    """The work itself, once per process: it may hold whole vocabularies."""
    import polars_hash  # noqa: F401  (plans may hash)
    import ray

    tune_process()
    work: Callable[[Any], Any] = ray.get(shared[0])
    return work
