"""Protection of the service: host names, origins, sizes, tokens, and errors without tracebacks.

Requests are checked by their head, before their body is read.
"""

import asyncio
import ipaddress
import logging
from collections.abc import Collection
from uuid import uuid4

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from data_pipelines.errors import UnavailableError, UserError
from serving.http.jobs import ConflictError, JobStore
from serving.http.request_rows import Limits, one_sentence

_log = logging.getLogger(__name__)
_HEADERS = {
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
}
_OPEN = frozenset({"/", "/docs", "/openapi.json", "/healthz", "/readyz"})
"""Paths that need no token, besides those below ``/static/``."""
_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_NO_DATABASE = "the jobs database does not answer: try again"


class Guard:
    """Refuses requests by their head; counts the bytes of bodies while they arrive; adds security headers.

    Args:
        hosts: Names that ``Host`` may give besides those of loopback; ``None`` accepts any.
        tokens_required: Require a token even if none exists. As soon as there is one, tokens are always required.
    """

    def __init__(
        self, app: ASGIApp, store: JobStore, limits: Limits, hosts: Collection[str] | None, tokens_required: bool
    ) -> None:
        self._app, self._store, self._limits = app, store, limits
        self._hosts = None if hosts is None else frozenset(name.strip("[]").lower() for name in hosts)
        self._tokens_required = tokens_required
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] += [(k.encode(), v.encode()) for k, v in _HEADERS.items()]
            await send(message)

        try:
            self._check_head(scope)
            await self._check_token(scope)
        except HTTPException as refused:
            answer = JSONResponse({"detail": refused.detail}, refused.status_code, refused.headers)
            await answer(scope, receive, guarded)
            return
        body = _Body(receive, self._largest(scope), self._limits.seconds)
        try:
            await self._app(scope, lambda: self._receive(body), guarded)
        finally:
            self._held -= body.received

    async def _receive(self, body: "_Body") -> Message:
        before = body.received
        try:
            return await body.receive()
        finally:
            self._held += body.received - before
            if self._held > self._limits.held_bytes:
                raise HTTPException(503, "too many large requests at a time: try again")

    def _largest(self, scope: Scope) -> int:
        return self._limits.body_bytes if scope["path"] == "/v1/score" else self._limits.small_body_bytes

    def _check_head(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self._hosts is not None and not _is_accepted(_name(host), self._hosts):
            raise HTTPException(
                421, f"{host[:200]!r} is not a name of this service: start it with --allow-host to accept a name"
            )
        if scope["method"] not in _READING:
            self._check_origin(headers, host)
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise HTTPException(415, "compressed bodies are not read: send the body without Content-Encoding")
        declared, largest = headers.get("content-length", "0"), self._largest(scope)
        if not (declared.isascii() and declared.isdigit()) or int(declared[:20]) > largest:
            raise _too_large(largest)

    def _check_origin(self, headers: Headers, host: str) -> None:
        """A page of another site may send requests here, though it cannot read the answers."""
        origin = headers.get("origin")
        foreign = headers.get("sec-fetch-site") == "cross-site"
        if origin is not None:
            place = origin.partition("://")[2].lower()
            # A proxy may have put another name into Host. Another port of this machine is another site.
            given = place in (self._hosts or ()) and not is_loopback(place)
            foreign = foreign or not place or not (given or place == host.lower())
        if foreign:
            raise HTTPException(
                403, "the request comes from a page of another site: only this service's own may send it"
            )

    async def _check_token(self, scope: Scope) -> None:
        if scope["path"] in _OPEN or scope["path"].startswith("/static/"):
            return
        kind, _, token = Headers(scope=scope).get("authorization", "").partition(" ")
        try:
            known = await run_in_threadpool(self._is_known, token.strip() if kind.lower() == "bearer" else None)
        except SQLAlchemyError:
            _log.exception("the jobs database does not answer")
            raise HTTPException(503, _NO_DATABASE) from None
        except UnavailableError as error:
            _log.error("%s", error)
            raise HTTPException(503, str(error)) from None
        if not known:
            raise HTTPException(401, "a valid token is needed", headers={"www-authenticate": "Bearer"})

    def _is_known(self, token: str | None) -> bool:
        if token is not None:
            return self._store.token_name(token) is not None
        return not self._tokens_required and not self._store.has_tokens()


class _Body:
    """The body of one request while it arrives: at most ``largest`` bytes, within ``seconds``."""

    def __init__(self, receive: Receive, largest: int, seconds: float) -> None:
        self._receive, self._largest, self._seconds = receive, largest, seconds
        self._until: float | None = None
        self._whole = False
        self.received = 0

    async def receive(self) -> Message:
        if self._whole:
            return await self._receive()
        self._until = self._until or asyncio.get_running_loop().time() + self._seconds
        try:
            async with asyncio.timeout_at(self._until):
                message = await self._receive()
        except TimeoutError:
            raise HTTPException(408, f"the body did not arrive within {self._seconds:g} seconds") from None
        self._whole = message["type"] != "http.request" or not message.get("more_body", False)
        self.received += len(message.get("body", b""))
        if self.received > self._largest:
            raise _too_large(self._largest)
        return message


bearer = HTTPBearer(auto_error=False, description="Made by `recsys token NAME`.")
"""For the description of the API only: tokens are checked before a route is looked for."""


def is_loopback(host: str) -> bool:
    """Whether a name or address can only be reached from this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def answer_errors(app: FastAPI) -> None:
    """Errors of clients are answered with one sentence; any other error with a number to find it in the log."""

    @app.exception_handler(ConflictError)
    async def conflict(_: Request, error: ConflictError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 409)

    @app.exception_handler(UnavailableError)
    async def unavailable(request: Request, error: UnavailableError) -> JSONResponse:
        _log.error("at %s: %s", request.url.path, error)
        return JSONResponse({"detail": str(error)}, 503)

    @app.exception_handler(UserError)
    async def user_error(_: Request, error: UserError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 422)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"detail": one_sentence(error.errors())}, 422)

    @app.exception_handler(SQLAlchemyError)
    async def no_database(request: Request, error: SQLAlchemyError) -> JSONResponse:
        _log.error("the jobs database does not answer at %s", request.url.path, exc_info=error)
        return JSONResponse({"detail": _NO_DATABASE}, 503)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        number = uuid4().hex[:12]
        _log.error("error %s at %s", number, request.url.path, exc_info=error)
        return JSONResponse({"detail": f"internal error {number}; the service's log says more"}, 500)


def _is_accepted(name: str, hosts: Collection[str]) -> bool:
    return is_loopback(name) or name in hosts


def _name(host: str) -> str:
    """The name in ``name``, ``name:port``, ``[address]`` or ``[address]:port``."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].rstrip(".").lower()


def _too_large(largest: int) -> HTTPException:
    return HTTPException(413, f"the body is larger than {largest} bytes")
