"""Verbs of serving: export, verify, score, serve."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from recsys.cli.common import Json, Overrides, app, finish, progress_bar

ArtifactFolder = Annotated[Path, typer.Argument(metavar="ARTIFACT", help="What `recsys export` wrote.")]
DatasetOption = Annotated[Path | None, typer.Option(help="Data set; that of the training if absent.")]


@app.command("export")
def export_verb(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="What `recsys train` wrote.")],
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="Folder to write.")],
    overrides: Overrides = None,
    dataset: DatasetOption = None,
    replace: Annotated[bool, typer.Option("--replace", help="Put it in the place of what is at ARTIFACT.")] = False,
    json: Json = False,
) -> None:
    """Prune, quantize and write everything that scoring needs."""
    from recsys.exporting import export_run

    exported = export_run(run, artifact, overrides or (), dataset=dataset, replace=replace)
    finish({"artifact": artifact, **summary(exported)}, json, f"recsys score {artifact} INPUT OUTPUT")


def summary(artifact: "Artifact") -> dict[str, object]:  # type: ignore[name-defined]  # noqa: F821
    """Figures of an artifact: bytes by part, tables, metrics. ``recsys inspect`` prints them too."""
    files = artifact.manifest.files
    parts = {"tables": "tables.", "dense": "dense.", "vocabularies": "vocabularies/"}
    return {
        "name": artifact.card.name,
        "tasks": list(artifact.encoder.schema.tasks),
        "features": list(artifact.encoder.schema.feature_names),
        "bytes": artifact.bytes,
        "bytes_by_part": {
            part: sum(entry.bytes for name, entry in files.items() if name.startswith(prefix))
            for part, prefix in parts.items()
        },
        "tables": {name: entry.model_dump() for name, entry in artifact.model.tables.items()},
        "precision": artifact.model.precision,
        "calibrated": sorted(artifact.model.calibration),
        "metrics": artifact.card.metrics,
    }


@app.command("verify")
def verify_verb(
    artifact: ArtifactFolder,
    against: Annotated[Path, typer.Option(metavar="RUN", help="The run it was exported from.")],
    dataset: DatasetOption = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows to score, from the split's beginning.")] = 50_000,
    split: Annotated[str, typer.Option(help="train, valid or test.")] = "test",
    json: Json = False,
) -> None:
    """Score the same rows with an artifact and with its run, and compare."""
    from recsys.exporting import verify_artifact
    from serving.artifact import Artifact

    result = verify_artifact(Artifact.open(artifact), against, dataset=dataset, rows=rows, split=split)
    finish(result, json, f"recsys score {artifact} INPUT OUTPUT")


@app.command("score")
def score_verb(
    artifact: ArtifactFolder,
    source: Annotated[str, typer.Argument(metavar="INPUT", help="File, folder, glob or address of the rows.")],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Folder to write the scores to.")],
    events: Annotated[str | None, typer.Option(help="Log of what happened since the artifact was made.")] = None,
    bad_rows: Annotated[
        Literal["quarantine", "score"], typer.Option(help="Leave them out with the reason, or read bad values as null.")
    ] = "quarantine",
    logits: Annotated[bool, typer.Option("--logits", help="Add the logits.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Parts at a time; one a processor if absent.")] = None,
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="Threads of this process, or a Ray cluster.")
    ] = "local",
    address: Annotated[str | None, typer.Option(help="Of the Ray cluster; one of this machine if absent.")] = None,
    json: Json = False,
) -> None:
    """Score rows of any size; killed and started again, it goes on where it was."""
    from serving.artifact import Artifact
    from serving.batch_job import Engine, JobOptions, run_job

    options = JobOptions(bad_rows=bad_rows, logits=logits)
    workers: Engine | None = None
    if engine == "ray":
        from recsys.cluster.scoring import ray_engine

        workers = ray_engine(address)
    with progress_bar("scoring") as advance:
        result = run_job(
            Artifact.open(artifact),
            source,
            output,
            options,
            events=events,
            threads=threads,
            progress=lambda rows, total: advance(rows, total=total),
            engine=workers,
        )
    finish(vars(result), json)
