"""Verbs of serving: export, verify, score, serve."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer

from recsys.cli.common import (
    Json,
    LateEvents,
    Overrides,
    app,
    command,
    finish,
    local_folder,
    progress_bar,
    say_side_tables,
)

ArtifactFolder = Annotated[
    Path, typer.Argument(metavar="ARTIFACT", help="What `recsys export` wrote.", parser=local_folder)
]
DatasetOption = Annotated[Path | None, typer.Option(help="Data set; by default, the one of the training.")]
DataRoots = Annotated[
    list[Path], typer.Option("--data-root", metavar="DIR", help="Jobs read and write only below such folders.")
]
JobsDatabase = Annotated[str, typer.Option(envvar="RECSYS_JOBS_DB", help="The service's database.")]
Device = Annotated[
    Literal["auto", "cpu", "cuda"],
    typer.Option(help="Where the model is computed; auto is the GPU that Torch sees. A GPU computes in bf16."),
]
AllowedAddresses = Annotated[
    list[str] | None,
    typer.Option("--allow-address", metavar="ADDRESS", help="Address below which artifacts may read side tables, too."),
]


@app.command("export")
def export_verb(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="What `recsys train` wrote.", parser=local_folder)],
    artifact: Annotated[str, typer.Argument(metavar="ARTIFACT", help="Folder to write; may be an address.")],
    overrides: Overrides = None,
    dataset: DatasetOption = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace what is at ARTIFACT.")] = False,
    format: Annotated[
        Literal["artifact", "portable", "onnx", "mlflow"],
        typer.Option(help="For `recsys score`, for NumPy alone, for ONNX Runtime, or as a model of MLflow."),
    ] = "artifact",
    json: Json = False,
) -> None:
    """Prune, quantize and write everything that scoring needs."""
    from data_pipelines.disk.object_store import sent
    from recsys.exporting.export import export_as, export_run

    if format != "artifact":
        with sent(artifact, replace=replace) as folder:
            export_as(format, run, folder, overrides or (), dataset=dataset, replace=replace)
        load = f"mlflow models serve --env-manager local -m {artifact}"
        score = f"python -m serving.portable.scorer {artifact} ROWS.csv"
        finish({"portable" if format == "onnx" else format: artifact}, json, load if format == "mlflow" else score)
        return
    with sent(artifact, replace=replace) as folder:
        figures = summary(export_run(run, folder, overrides or (), dataset=dataset, replace=replace))
    finish({"artifact": artifact, **figures}, json, command("score", artifact, "INPUT", "OUTPUT"))


def summary(artifact: "Artifact") -> dict[str, object]:  # type: ignore[name-defined]  # noqa: F821
    """Figures of an artifact: bytes by part, tables, metrics. ``recsys inspect`` prints them too."""
    parts = {
        "tables": "tables.",
        "dense": "dense.",
        "model": "model.",
        "encoder": "encoder.",
        "vocabularies": "vocabularies/",
    }
    return {
        "name": artifact.card.name,
        "tasks": list(artifact.encoder.schema.tasks),
        "features": list(artifact.encoder.schema.feature_names),
        "bytes": artifact.bytes,
        "bytes_by_part": {part: size for part, prefix in parts.items() if (size := artifact.bytes_of(prefix))},
        "tables": {name: entry.model_dump() for name, entry in artifact.model.tables.items()},
        "precision": artifact.model.precision,
        "activations": artifact.model.activations,
        "calibrated": sorted(artifact.model.calibration),
        "side_tables": artifact.side_tables,
        "metrics": {split: metrics.model_dump() for split, metrics in artifact.card.metrics.items()},
    }


@app.command("verify")
def verify_verb(
    artifact: ArtifactFolder,
    against: Annotated[Path, typer.Option(metavar="RUN", help="The run it was exported from.")],
    dataset: DatasetOption = None,
    rows: Annotated[int, typer.Option(min=1, help="Number of rows to score, from the start of the split.")] = 50_000,
    split: Annotated[str, typer.Option(help="train, valid or test.")] = "test",
    device: Device = "cpu",
    json: Json = False,
) -> None:
    """Score the same rows with an artifact and with its run, and compare."""
    from recsys.exporting.export import verify_artifact
    from serving.artifact.artifact import Artifact

    opened = Artifact.open(artifact, verify="full")
    result = verify_artifact(opened, against, dataset=dataset, rows=rows, split=split, device=device)
    finish(result, json, command("score", artifact, "INPUT", "OUTPUT"))


@app.command("score")
def score_verb(
    artifact: ArtifactFolder,
    source: Annotated[str, typer.Argument(metavar="INPUT", help="File, folder, glob or address of the rows.")],
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="Folder to write the scores to; may be an address.")],
    events: Annotated[str | None, typer.Option(help="Log of what happened since the artifact was made.")] = None,
    state: Annotated[
        Path | None, typer.Option(help="State to read the past from, such as `recsys state update` wrote.")
    ] = None,
    late: Annotated[
        LateEvents,
        typer.Option(help="With --events: what to do with those that are not later than the state's latest event."),
    ] = "refuse",
    bad_rows: Annotated[
        Literal["quarantine", "score"],
        typer.Option(help="Rows with unreadable values: quarantine them, or score them with these values as null."),
    ] = "quarantine",
    logits: Annotated[bool, typer.Option("--logits", help="Add the logits.")] = False,
    candidates: Annotated[
        str | None, typer.Option(help="Table of candidates: each row is then a user, scored with all of them.")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Keep only this many candidates per user, the best ones.")
    ] = None,
    warn_unknown: Annotated[
        float,
        typer.Option(min=0, max=1, help="Warn if a larger share of a feature's values was never seen in training."),
    ] = 0.5,
    max_unknown: Annotated[
        float,
        typer.Option(min=0, max=1, help="Fail if a larger share of a feature's values was never seen in training."),
    ] = 0.99,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Parts that are scored at the same time; by default, one per processor.")
    ] = None,
    device: Device = "cpu",
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="Score on threads of this process, or on a Ray cluster.")
    ] = "local",
    address: Annotated[
        str | None, typer.Option(help="Address of the Ray cluster; by default, Ray starts on this machine.")
    ] = None,
    json: Json = False,
) -> None:
    """Score rows of any size; resumable after a crash."""
    from serving.artifact.artifact import Artifact
    from serving.batch.score import score
    from serving.batch.workers import Engine

    workers: Engine | None = None
    if engine == "ray":
        from recsys.cluster.scoring import ray_engine

        workers = ray_engine(address)
    opened = Artifact.open(artifact, verify="full")
    say_side_tables(artifact, opened.side_tables)
    with progress_bar("scoring") as advance:
        result = score(
            opened,
            source,
            output,
            events=events,
            state=state,
            late=late,
            bad_rows=bad_rows,
            logits=logits,
            candidates=candidates,
            top_k=top_k,
            warn_unknown=warn_unknown,
            max_unknown=max_unknown,
            threads=threads,
            progress=lambda rows, total: advance(rows, total=total),
            device=device,
            engine=workers,
        )
    finish({**vars(result), "output": output}, json)


@app.command("serve")
def serve_verb(
    artifacts: Annotated[
        list[str], typer.Option("--artifact", metavar="[NAME=]PATH", help="Artifact to serve; the first becomes live.")
    ],
    data_roots: DataRoots,
    states: Annotated[
        list[str] | None,
        typer.Option(
            "--state",
            metavar="[NAME=]PATH",
            help="State that an artifact (by default the first) reads the past from; reloaded when it is updated.",
        ),
    ] = None,
    allowed: AllowedAddresses = None,
    jobs_db: Annotated[
        str, typer.Option(envvar="RECSYS_JOBS_DB", help="sqlite:///PATH or postgresql://USER@HOST/NAME.")
    ] = "sqlite:///jobs.db",
    host: Annotated[
        str, typer.Option(help="Address to listen on; beyond loopback, tokens are required.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8080,
    workers: Annotated[int, typer.Option(min=0, help="Processes that run jobs, on the CPU.")] = 1,
    device: Device = "cpu",
    allowed_hosts: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-host", metavar="NAME", help="Host name that clients may use, in addition to localhost and --host."
        ),
    ] = None,
) -> None:
    """Serve scores over HTTP, run jobs, and show both on a page."""
    with optional_part():
        from serving.http.server import serve

    named = dict(_named(artifact) for artifact in artifacts)
    pasts = [state.partition("=") if "=" in state else (next(iter(named)), "=", state) for state in states or ()]
    serve(
        named,
        data_roots,
        jobs_db,
        host=host,
        port=port,
        workers=workers,
        addresses=allowed or (),
        allowed_hosts=allowed_hosts or (),
        states={name: Path(path) for name, _, path in pasts},
        device=device,
    )


@app.command("worker")
def worker_verb(
    data_roots: DataRoots,
    allowed: AllowedAddresses = None,
    jobs_db: JobsDatabase = "sqlite:///jobs.db",
) -> None:
    """Run jobs of a service, on this machine or another one; SIGTERM gives the running job back to the queue."""
    with optional_part():
        from serving.http.worker import work

    work(jobs_db, data_roots, allowed or ())


@contextmanager
def optional_part() -> Iterator[None]:
    """Turn a failed import inside the block into a sentence that names the missing package."""
    from data_pipelines.errors import UserError

    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed: run `pip install 'sparse-recsys[serve]'`.") from None


def _named(artifact: str) -> tuple[str, Path]:
    name, equals, path = artifact.partition("=")
    return (name, Path(path)) if equals else (Path(artifact).resolve().name, Path(artifact))


@app.command("token")
def token_verb(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose token it is.")],
    jobs_db: JobsDatabase = "sqlite:///jobs.db",
) -> None:
    """Make a bearer token for the service and print it: only its hash is kept."""
    with optional_part():
        from serving.http.jobs import JobStore

    print(JobStore(jobs_db).new_token(name))
