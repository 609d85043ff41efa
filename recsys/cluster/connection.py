"""Joining a Ray cluster, or starting one on this machine."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from data_pipelines.errors import UserError


@contextmanager
def ray_cluster(address: str | None) -> Iterator[Any]:
    """The ``ray`` module, connected to the cluster at ``address``; a cluster of this machine's processors if ``None``.

    Raises:
        UserError: Ray is not installed, or no cluster answers.
    """
    try:
        import ray
    except ModuleNotFoundError:
        raise UserError("engine ray needs Ray, which is not installed: pip install 'ray[data]'.") from None
    mine = not ray.is_initialized()
    if mine:
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"no Ray cluster answers at {address}: {reason}") from None
    try:
        yield ray
    finally:
        if mine:
            ray.shutdown()


def processors(ray: Any) -> int:
    """Processors of the whole cluster."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))
