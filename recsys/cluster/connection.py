"""Joining a Ray cluster, or starting one on this machine."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Any

from data_pipelines.errors import UserError


@contextmanager
def ray_cluster(address: str | None) -> Iterator[Any]:
    """The ``ray`` module, connected to the cluster at ``address``; a cluster of this machine's processors if ``None``.

    A cluster that is started here listens on loopback only and has no dashboard. Ray sends no usage reports, unless
    ``RAY_USAGE_STATS_ENABLED`` says so.

    Raises:
        UserError: Ray is not installed, or no cluster answers.
    """
    joined = address not in (None, "local") or (address is None and "RAY_ADDRESS" in os.environ)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not joined:
        # Without this, Ray replaces 127.0.0.1 by an address that other machines can reach.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    try:
        import ray
    except ModuleNotFoundError:
        raise UserError("engine ray needs Ray, which is not installed: pip install 'ray[data]'.") from None
    mine = not ray.is_initialized()
    if mine:
        own: dict[str, Any] = {} if joined else {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        place = address if joined else "local"  # None would join a cluster that someone else started on this machine
        try:
            ray.init(address=place, log_to_driver=False, logging_level=logging.ERROR, **own)
        except (ConnectionError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"no Ray cluster answers at {place}: {reason}") from None
        listening: Any = ray.util.get_node_ip_address  # which has no annotations
        if own and not ip_address(listening()).is_loopback:
            ray.shutdown()
            raise UserError(
                "this process has already joined a Ray cluster: use a new process to start one on this machine."
            )
    try:
        yield ray
    finally:
        if mine:
            ray.shutdown()


def processors(ray: Any) -> int:
    """Processors of the whole cluster."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))
