"""What stands between clients and the service: size and time limits, tokens, and errors without tracebacks."""

import logging
from uuid import uuid4

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from data_pipelines.errors import UnavailableError, UserError
from serving.http.jobs import ConflictError, JobStore

_log = logging.getLogger(__name__)
_HEADERS = {
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
}


class BodyLimit:
    """Answers 413 to a request whose body is larger than ``largest`` bytes, declared or not; adds security headers."""

    def __init__(self, app: ASGIApp, largest: int) -> None:
        self._app, self._largest = app, largest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        declared = headers.get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > self._largest:
            await self._refuse(scope, receive, send)
            return
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._largest:
                raise HTTPException(413, f"the body is larger than {self._largest} bytes")
            return message

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] += [(k.encode(), v.encode()) for k, v in _HEADERS.items()]
            await send(message)

        await self._app(scope, limited, guarded)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = JSONResponse({"detail": f"the body is larger than {self._largest} bytes"}, 413)
        await answer(scope, receive, send)


class Tokens:
    """A dependency: the name of the caller, whose bearer token must be known wherever tokens are asked for.

    Args:
        required: Ask even when no token was ever made. Otherwise they are asked for as soon as there is one.
    """

    def __init__(self, store: JobStore, *, required: bool) -> None:
        self._store, self._required = store, required

    async def __call__(self, request: Request) -> str:
        found: HTTPAuthorizationCredentials | None = await bearer(request)
        name = await run_in_threadpool(self._check, found.credentials if found else None)
        if name is None:
            raise HTTPException(401, "a valid token is needed", headers={"www-authenticate": "Bearer"})
        return name

    def _check(self, token: str | None) -> str | None:
        if token is not None:
            return self._store.token_name(token)
        return None if self._required or self._store.has_tokens() else "anyone"


bearer = HTTPBearer(auto_error=False)


def answer_errors(app: FastAPI) -> None:
    """What a client did wrong gets its one sentence; anything else a number to find it in the log by."""

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

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        number = uuid4().hex[:12]
        _log.error("error %s at %s", number, request.url.path, exc_info=error)
        return JSONResponse({"detail": f"internal error {number}; the service's log says more"}, 500)
