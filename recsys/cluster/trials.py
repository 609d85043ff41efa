"""Trials of studies and searches as tasks on a Ray cluster.

The folders of the data set and of the trials must be at the same paths on every node. A trial that dies with its
process or its node runs again elsewhere.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from data_pipelines.runtime import tune_process
from recsys.cluster.connection import processors, ray_cluster
from recsys.trials.engines import THREAD_VARIABLES, Engine


@contextmanager
def ray_tasks(address: str | None = None, *, threads: int = 1, jobs: int | None = None) -> Iterator[Engine]:
    """The engine whose calls are tasks on the Ray cluster at ``address``.

    Args:
        jobs: As many as the cluster's processors allow if ``None``.
    """
    with ray_cluster(address) as ray:
        environment = {"env_vars": dict.fromkeys(THREAD_VARIABLES, str(threads))}
        task = ray.remote(num_cpus=threads, max_retries=-1, runtime_env=environment)(_carry_out)

        def submit(call: Callable[[], Any]) -> "Future[Any]":
            future: Future[Any] = task.remote(call).future()
            return future

        yield Engine(jobs or max(1, processors(ray) // threads), threads, submit)


def _carry_out(call: Callable[[], Any]) -> Any:
    tune_process()
    return call()
