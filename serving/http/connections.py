"""Connections of the HTTP server: bounded in number, and closed when no request comes within a time."""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

CONNECTIONS = 512
HEAD_S = 10.0
"""Seconds within which the head of a request must arrive, on a new connection or after the previous answer."""
STALLED_S = 60.0
"""Seconds for which a client may read nothing of its answer."""


class BoundedConnection(H11Protocol):
    """Closes itself when it waits longer than :data:`HEAD_S` for the head of a request.

    A connection beyond :data:`CONNECTIONS` replaces the one that has waited longest, so that half-sent requests do not
    block others; it is refused if all others are busy.
    """

    _waiting_since = 0.0
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()
        if len(self.connections) > CONNECTIONS:
            others = (
                c for c in self.connections if isinstance(c, BoundedConnection) and c.is_waiting and c is not self
            )
            closing = min(others, key=lambda connection: connection._waiting_since, default=self)
            closing.connections.discard(closing)
            closing.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self._wait()
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stop_waiting()
        self._deadline = self.loop.call_later(STALLED_S, self.transport.abort)

    def resume_writing(self) -> None:
        self._stop_waiting()
        super().resume_writing()

    @property
    def is_waiting(self) -> bool:
        """Whether no request is being answered."""
        cycle: Any = self.cycle
        return cycle is None or bool(cycle.response_complete)

    def _wait(self) -> None:
        self._stop_waiting()
        self._waiting_since = self.loop.time()
        self._deadline = self.loop.call_later(HEAD_S, self._close_waiting)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()

    def _close_waiting(self) -> None:
        if self.is_waiting and not self.transport.is_closing():
            self.transport.abort()
