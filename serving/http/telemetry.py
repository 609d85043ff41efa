"""Prometheus metrics of a service: requests, rows, the queue, OOV rates and drift."""

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.http.jobs import JobStore
from serving.http.live import LiveArtifacts

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Telemetry:
    """The metrics of one service, in a separate registry."""

    def __init__(self, store: JobStore, artifacts: LiveArtifacts) -> None:
        self.registry = CollectorRegistry()
        self.rows = Counter("recsys_rows_scored", "Rows scored by requests.", ["artifact"], registry=self.registry)
        self.seconds = Histogram(
            "recsys_request_seconds",
            "Time from the first byte in to the last byte out.",
            ["method", "route", "status"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.registry.register(_Snapshot(store, artifacts))


class _Snapshot(Collector):
    """Metrics that are computed when Prometheus reads them."""

    def __init__(self, store: JobStore, artifacts: LiveArtifacts) -> None:
        self._store, self._artifacts = store, artifacts

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        jobs = GaugeMetricFamily("recsys_jobs", "Jobs by state.", labels=["state"])
        for state, number in self._store.counts().items():
            jobs.add_metric([state], number)
        yield jobs
        families = {
            "features": GaugeMetricFamily(
                "recsys_feature_psi", "Drift of a feature against training (PSI).", labels=["artifact", "feature"]
            ),
            "scores": GaugeMetricFamily(
                "recsys_score_psi", "Drift of a task's score against training (PSI).", labels=["artifact", "task"]
            ),
            "oov": GaugeMetricFamily(
                "recsys_oov_rate", "Share of ids outside the vocabulary.", labels=["artifact", "feature"]
            ),
        }
        for live in self._artifacts.loaded():
            if live.drift is not None:
                report = live.drift.report()
                for part, family in families.items():
                    for name, value in report[part].items():
                        family.add_metric([live.name, name], value)
        yield from families.values()


class Timing:
    """Measures every request by its route (not by its path, in which every id would be a label).

    Labels come from fixed lists: a method or path that the service does not know is ``other``.
    """

    def __init__(self, app: ASGIApp, telemetry: Telemetry) -> None:
        self._app, self._telemetry = app, telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            seconds = time.perf_counter() - began
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._telemetry.seconds.labels(method, route, str(status)).observe(seconds)
