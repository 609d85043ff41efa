"""The service: scoring jobs and small requests over HTTP, and a page to watch them on."""

import asyncio
import io
import os
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import polars as pl
import pyarrow as pa
from fastapi import APIRouter, FastAPI, Header, HTTPException, Query, Request, Response, Security
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from sqlalchemy.exc import SQLAlchemyError

from data_pipelines.arrays import to_arrow
from serving.artifact.device import DeviceName
from serving.batch.options import JobOptions
from serving.batch.value_counts import ValueCounts
from serving.http.allowed_paths import Roots
from serving.http.auth import Guard, answer_errors, bearer
from serving.http.database import Registered
from serving.http.docs_pages import pages
from serving.http.jobs import Job, JobStore, State
from serving.http.live import Live, LiveArtifacts, register
from serving.http.request_rows import Limits, Name, ScoreRows, read_arrow, read_json
from serving.http.telemetry import Telemetry, Timing

ARROW = "application/vnd.apache.arrow.stream"
JobId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class NewJob(_Body):
    """A job to queue. ``input`` and ``output`` are paths below the data roots."""

    input: str = Field(min_length=1, max_length=4096)
    output: str = Field(min_length=1, max_length=4096)
    artifact: Name | None = Field(None, description="Name; the live one if absent.")
    options: JobOptions = JobOptions()


class ArtifactAt(_Body):
    """The paths, below the data roots, of an artifact to register and of a state to read the past from."""

    path: str = Field(min_length=1, max_length=4096)
    state: str | None = Field(
        None,
        min_length=1,
        max_length=4096,
        description="A state in place of the artifact's own, read again when it changes.",
    )


class Scores(BaseModel):
    """One object per row, in the order of the request: key columns, then one number per task.

    ``unknown`` is the share of the values of each feature that training never saw, of features that have values.
    """

    artifact: str
    fingerprint: str
    unknown: dict[str, float]
    scores: list[dict[str, Any]]


class ArtifactInfo(BaseModel):
    """A registered artifact."""

    name: str
    live: bool
    path: str
    fingerprint: str
    state: str | None


def create_app(
    store: JobStore,
    roots: Roots,
    *,
    limits: Limits | None = None,
    tokens_required: bool = False,
    hosts: Collection[str] | None = None,
    device: DeviceName = "cpu",
) -> FastAPI:
    """The service over a jobs' database. Workers in other processes run the jobs (:mod:`serving.http.worker`).

    Args:
        tokens_required: Require a token even if none exists. As soon as there is one, tokens are always required.
        hosts: Names that a request's ``Host`` may give besides those of loopback; ``None`` accepts any.
        device: Where requests are computed; jobs are on the CPU of their worker.
    """
    limits = limits or Limits()
    artifacts = LiveArtifacts(store, roots, device)
    telemetry = Telemetry(store, artifacts)
    app = FastAPI(
        title="recsys",
        description="Scores of a recommender: as jobs over files, and in small batches.",
        docs_url=None,  # Swagger's page loads its script from another host: serving.http.docs_pages has one of our own.
        redoc_url=None,
        redirect_slashes=False,  # A redirect names the host that the request named.
    )
    app.add_middleware(Guard, store=store, limits=limits, hosts=hosts, tokens_required=tokens_required)
    app.add_middleware(Timing, telemetry=telemetry)
    answer_errors(app)
    described = [Security(bearer)]
    app.include_router(_jobs(store, roots, artifacts), dependencies=described)
    app.include_router(_artifacts(store, roots, artifacts), dependencies=described)
    app.include_router(_scoring(artifacts, telemetry, limits), dependencies=described)
    app.include_router(_health(artifacts, telemetry, described))
    app.include_router(pages())
    return app


def _problems(*codes: int) -> dict[int | str, dict[str, Any]]:
    known = {401: "No valid token", 404: "No such thing", 409: "Contradicts what is there", 413: "Too large"}
    known |= {
        422: "Cannot be used as it is",
        503: "Not ready, or a disk, database or artifact cannot be used now",
        504: "Took too long",
        400: "Cannot be read",
    }
    known |= {408: "Arrived too slowly", 415: "Compressed"}
    problem = {"application/json": {"schema": {"type": "object", "properties": {"detail": {}}}}}
    return {code: {"description": known[code], "content": problem} for code in {*codes, 503}}


def _jobs(store: JobStore, roots: Roots, artifacts: LiveArtifacts) -> APIRouter:
    router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

    @router.post("", status_code=201, responses={200: {"model": Job}, **_problems(400, 401, 409, 413, 422)})
    def submit(
        body: NewJob,
        response: Response,
        idempotency_key: Annotated[str | None, Header(pattern=r"^[!-~]{1,200}$")] = None,
    ) -> Job:
        """Queue a job. The same ``Idempotency-Key`` again gives the job it named (200), not another one."""
        job, created = store.submit(
            artifact=body.artifact or artifacts.name(),
            source=roots.source(body.input),
            output=str(roots.output(body.output)),
            options=_options(body.options, roots),
            idempotency_key=idempotency_key,
        )
        response.status_code = 201 if created else 200
        return job

    @router.get("", responses=_problems(401, 422))
    def jobs(
        state: State | None = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        before: Annotated[
            float | None, Query(description="Created before this time, seconds since 1970.", allow_inf_nan=False)
        ] = None,
    ) -> list[Job]:
        """Jobs, the newest first."""
        return store.jobs(state=state, limit=limit, before=before)

    @router.get("/counts", responses=_problems(401))
    def counts() -> dict[str, int]:
        """How many jobs there are in each state."""
        return store.counts()

    def found(job: Job | None) -> Job:
        if job is None:
            raise HTTPException(404, "there is no such job")
        return job

    @router.get("/{job}", responses=_problems(401, 404, 422))
    def one(job: JobId) -> Job:
        """A job: state, rows done, rows per second, seconds left, error."""
        return found(store.get(job))

    @router.post("/{job}/cancel", responses=_problems(401, 404, 422))
    def cancel(job: JobId) -> Job:
        """Cancel: a queued job at once, a running one after its running parts; no effect on a finished one."""
        return found(store.cancel(job))

    @router.post("/{job}/retry", responses=_problems(401, 404, 409, 422))
    def retry(job: JobId) -> Job:
        """Queue a failed or cancelled job again; finished parts are kept."""
        return found(store.retry(job))

    return router


def _options(options: JobOptions, roots: Roots) -> dict[str, Any]:
    candidates = None if options.candidates is None else roots.source(options.candidates)
    return options.model_copy(update={"candidates": candidates}).model_dump()


def _info(name: str, registered: Registered, *, live: bool) -> ArtifactInfo:
    return ArtifactInfo(
        name=name,
        live=live,
        path=registered.path,
        fingerprint=registered.fingerprint,
        state=registered.state_path,
    )


def _artifacts(store: JobStore, roots: Roots, artifacts: LiveArtifacts) -> APIRouter:
    router = APIRouter(prefix="/v1/artifacts", tags=["artifacts"])

    @router.get("", responses=_problems(401))
    def listed() -> list[ArtifactInfo]:
        """Artifacts by name, and which one is live."""
        live = store.live()
        return [_info(name, registered, live=name == live) for name, registered in store.artifacts().items()]

    @router.put("/{name}", responses=_problems(400, 401, 413, 422))
    def put(name: Name, body: ArtifactAt) -> ArtifactInfo:
        """Register an artifact below the data roots. Jobs submitted before keep the one they were submitted with."""
        state = None if body.state is None else roots.output(body.state)
        known = register(store, roots, name, roots.output(body.path), state)
        artifacts.forget()
        return _info(name, known, live=store.live() == name)

    @router.post("/{name}/live", status_code=204, responses=_problems(401, 409, 422))
    def make_live(name: Name) -> None:
        """Score with this artifact from now on. Running requests and jobs keep theirs."""
        artifacts.get(name)
        store.make_live(name)
        artifacts.forget()

    @router.get("/{name}/card", responses=_problems(401, 409, 422))
    def card(name: Name) -> dict[str, Any]:
        """Model card, size report, and bytes of every file."""
        artifact = artifacts.get(name).scorer.artifact
        files = {file: entry.bytes for file, entry in artifact.manifest.files.items()}
        return {**artifact.card.model_dump(mode="json"), "bytes": artifact.bytes, "files": files}

    @router.get("/{name}/drift", responses=_problems(401, 409, 422))
    def drift(name: Name) -> dict[str, dict[str, float]]:
        """The drift of the rows that this process scored on request."""
        monitor = artifacts.get(name).drift
        return {} if monitor is None else monitor.report()

    return router


def _scoring(artifacts: LiveArtifacts, telemetry: Telemetry, limits: Limits) -> APIRouter:
    router = APIRouter(prefix="/v1/score", tags=["scoring"])
    pool = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="score")
    body = {
        "application/json": {"schema": ScoreRows.model_json_schema()},
        ARROW: {"schema": {"type": "string", "format": "binary"}},
    }

    def answer(content: bytes, arrow: bool, artifact: str | None, logits: bool) -> Response:
        if arrow:
            rows = read_arrow(content, limits)
        else:
            asked, rows = read_json(content, limits)
            artifact, logits = asked.artifact or artifact, asked.logits or logits
        live = artifacts.get(artifact)
        try:
            scores, counts = live.score(rows, logits=logits)
        except pl.exceptions.PanicException as error:  # not an Exception: it would not be answered
            raise RuntimeError("Polars panicked") from error
        telemetry.rows.labels(live.name).inc(len(scores))
        return _arrow_answer(scores) if arrow else _json_answer(live, scores, counts)

    @router.post(
        "",
        response_model=Scores,
        openapi_extra={"requestBody": {"required": True, "content": body}},
        responses={
            200: {"content": {ARROW: {}}, "description": "Scores, in the form of the request."},
            **_problems(400, 401, 408, 409, 413, 415, 422, 503, 504),
        },
    )
    async def score(
        request: Request,
        artifact: Annotated[Name | None, Query(description="For Arrow: name of the artifact.")] = None,
        logits: Annotated[bool, Query(description="For Arrow: add the logits.")] = False,
    ) -> Any:
        """Score a small batch: a JSON object, or an Arrow IPC stream, which is answered with a stream."""
        content = await request.body()
        arrow = request.headers.get("content-type", "").split(";")[0].strip() == ARROW
        work = asyncio.get_running_loop().run_in_executor(pool, answer, content, arrow, artifact, logits)
        try:
            return await asyncio.wait_for(work, limits.seconds)
        except TimeoutError:
            raise HTTPException(504, f"not done within {limits.seconds:g} seconds") from None

    return router


def _json_answer(live: Live, scores: pl.DataFrame, counts: ValueCounts) -> Response:
    answer = {
        "artifact": live.name,
        "fingerprint": live.scorer.artifact.fingerprint,
        "unknown": counts.unknown_shares,
        "scores": scores.with_columns(pl.selectors.float().fill_nan(None)).to_dicts(),
    }
    return Response(Scores.model_validate(answer).model_dump_json(), media_type="application/json")


def _arrow_answer(scores: pl.DataFrame) -> Response:
    table = to_arrow(scores)
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return Response(sink.getvalue(), media_type=ARROW)


def _health(artifacts: LiveArtifacts, telemetry: Telemetry, described: Sequence[Any]) -> APIRouter:
    router = APIRouter(tags=["health"])

    @router.get("/healthz")
    async def alive() -> dict[str, str]:
        """The process answers. This waits for no thread and no database."""
        return {"status": "ok"}

    @router.get("/readyz", responses=_problems(503))
    def ready() -> dict[str, str]:
        """The database answers and there is a live artifact that opens."""
        try:
            return {"status": "ready", "artifact": artifacts.get().name}
        except (SQLAlchemyError, ValueError):
            raise HTTPException(503, "not ready: no database, or no live artifact") from None

    @router.get(
        "/metrics", dependencies=list(described), responses={200: {"content": {"text/plain": {}}}, **_problems(401)}
    )
    def metrics() -> Response:
        """Prometheus metrics."""
        return Response(generate_latest(telemetry.registry), media_type=CONTENT_TYPE_LATEST)

    return router
