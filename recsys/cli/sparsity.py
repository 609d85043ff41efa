"""Verbs of sparsity: sparsity (the size report), frontier (what size costs), select (which features matter)."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recsys.cli.common import Jobs, Json, Overrides, app, command, finish, progress_bar

if TYPE_CHECKING:
    from serving.artifact.card import SizeReport


@app.command()
def sparsity(
    source: Annotated[Path, typer.Argument(metavar="RUN_OR_ARTIFACT", help="A finished run, or an artifact.")],
    dataset: Annotated[Path | None, typer.Option(help="Where the run's data set is, if it was moved.")] = None,
    overrides: Overrides = None,
    json: Json = False,
) -> None:
    """Print the size report: density, bytes and FLOPs of every part, before and after the levers.

    For a run, also print AUC with interval, sizes and rates of the whole model, as trained and as served. KEY=VALUE
    overrides try other levers at export, such as sparsity.quantization.table_bits=4.
    """
    from recsys.exporting.measure import measure
    from recsys.reports.summaries import kind_of
    from serving.artifact.artifact import Artifact

    if kind_of(source) == "artifact":
        report = Artifact.open(source, verify="sizes").card.sparsity
        _print_report(report, json)
        finish(report if json else {}, json)
        return
    measured = measure(source, dataset=dataset, overrides=overrides or ())
    _print_report(measured, json)
    finish(measured if json else measured.whole, json)


def _print_report(report: "SizeReport", json: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    from recsys.reports.pages import byte_size

    table = Table("part", "kind", "numbers", "density", "checkpoint", "artifact", "FLOPs before", "after")
    table.columns[0].overflow = "fold"
    for column in table.columns[2:]:
        column.justify = "right"
    for part in report.parts:
        cells = [part.part, part.kind, f"{part.numbers:,}", f"{part.density:.3f}"]
        cells += [byte_size(part.checkpoint_bytes), byte_size(part.artifact_bytes)]
        cells += [f"{part.flops_before:,}", f"{part.flops_after:,}" + (" int8" if part.activations else "")]
        table.add_row(*cells, style="bold" if part.part == "total" else "")
    Console(stderr=json).print(table)


@app.command()
def frontier(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The experiment to shrink.")],
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="What `recsys prepare` wrote.")],
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="Folder of the result; replaced if it is there.")],
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=V1,V2,...", help="A key and the values to try, as YAML; every combination is a point."
        ),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Valid AUC (or RMSE, deviance) that the chosen point may lose.")
    ] = 0.001,
    budget: Annotated[int | None, typer.Option(min=1, help="Bytes that the chosen point's artifact may take.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings per point, each with its own seed.")] = 1,
    points: Annotated[
        int | None, typer.Option(min=1, help="Try at most this many combinations, drawn at random.")
    ] = None,
    trials: Annotated[
        Path | None, typer.Option(help="Folder of finished trials; by default, `trials` next to STUDY.")
    ] = None,
    jobs: Jobs = None,
    json: Json = False,
) -> None:
    """Draw quality against bytes and rows/s over a grid of levers, and write the chosen point as a config.

    It is resumable after a crash; points that differ only at export share a training.
    """
    from data_pipelines.dataset.dataset import Dataset
    from recsys.config.experiment import load_config
    from recsys.studies.frontier import Frontier, grid
    from recsys.trials.engines import processes
    from recsys.trials.trials import TrialStore
    from recsys.trials.workers import Workers

    experiment, data = load_config(config), Dataset.open(dataset)
    store = TrialStore(trials or study.parent / "trials")
    with processes(jobs=jobs) as engine:
        searched = Frontier(
            experiment, data, Workers(dataset, store, engine), grid(vary or (), at_most=points), seeds=seeds
        )
        with progress_bar("Points", len(searched.trials), unit="trials") as advance:
            searched.run(advance)
    result = searched.write(study, tolerance=tolerance, budget=budget)
    finish(result, json, command("train", study / "chosen.yaml", dataset, "RUN"))


@app.command()
def select(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The experiment.")],
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="What `recsys prepare` wrote.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the ranking and the reduced config.")],
    by: Annotated[
        str, typer.Option(help="chi2, mutual_information, l1_path, gates or permutation.")
    ] = "mutual_information",
    keep: Annotated[
        int | None, typer.Option(min=1, help="Number of features to keep; by default, those that carry information.")
    ] = None,
    run: Annotated[Path | None, typer.Option(help="A finished run, for permutation.")] = None,
    json: Json = False,
) -> None:
    """Rank the features, and write the config without those that carry no information."""
    from data_pipelines.dataset.dataset import Dataset
    from recsys.config.experiment import load_config
    from recsys.studies.feature_selection import select_features

    experiment, data = load_config(config), Dataset.open(dataset)
    result = select_features(experiment, data, out, by=by, keep=keep, run=run)
    finish(result, json, command("train", out / "reduced.yaml", dataset, "RUN"))


@app.command()
def codes(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the codes and their names.")],
    table: Annotated[str, typer.Option(help="The table whose rows are coded.")],
    method: Annotated[str, typer.Option(help="autoencoder or dictionary.")] = "autoencoder",
    size: Annotated[int, typer.Option("--codes", min=2, help="Number of codes.")] = 256,
    active: Annotated[int, typer.Option(min=1, help="Active codes per row.")] = 8,
    dataset: Annotated[Path | None, typer.Option(help="Where the run's data set is, if it was moved.")] = None,
    json: Json = False,
) -> None:
    """Turn a table's rows into a few named codes each, and measure neighbours, bytes and AUC."""
    from data_pipelines.errors import UserError
    from recsys.studies.codes import code_table

    if method not in ("autoencoder", "dictionary"):
        raise UserError(f"--method {method!r} is unknown: choose autoencoder or dictionary.")
    result = code_table(run, out, table, method=method, codes=size, active=active, dataset=dataset)  # type: ignore[arg-type]
    finish(result, json)
