"""Verbs of training: train, evaluate, tune."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from recsys.cli.common import (
    Address,
    EngineName,
    Jobs,
    Json,
    Overrides,
    Threads,
    app,
    command,
    finish,
    local_folder,
    progress_bar,
    trial_engine,
)

if TYPE_CHECKING:
    from data_pipelines.dataset.dataset import Dataset
    from recsys.evaluation.off_policy import OffPolicyResult

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="The experiment's YAML.")]
DataFolder = Annotated[
    Path, typer.Argument(metavar="DATASET", help="What `recsys prepare` wrote.", parser=local_folder)
]

Baselines = Annotated[
    bool | None,
    typer.Option(
        "--baselines/--no-baselines",
        help="Compare with all baselines (SVD and FM too), or with none; by default, with the quick ones.",
    ),
]
OffPolicy = Annotated[
    bool, typer.Option("--off-policy", help="Estimate what the model's policy would have earned on logged decisions.")
]
ScoredOn = Annotated[
    Literal["auto", "cpu", "cuda"],
    typer.Option("--device", help="Where rows are scored, in float32; auto is the GPU that Torch sees."),
]
PolicyKeys = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Keys of off_policy, e.g. off_policy.policy=softmax."),
]


@app.command("train")
def train_verb(
    config: Config,
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="What `recsys prepare` wrote; may be an address.")],
    run: Annotated[str, typer.Argument(metavar="RUN", help="Folder to write; may be an address.")],
    overrides: Overrides = None,
    cache: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="GIB",
            help="With train.mix_shards and DATASET at an address: keep at most this much of its rows on this disk, "
            "for each rank; all that was read if absent.",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume from the last checkpoint of RUN.")] = False,
    json: Json = False,
) -> None:
    """Train a ranker; under torchrun, on several ranks."""
    from data_pipelines.dataset.dataset import Dataset
    from data_pipelines.disk.object_store import fetched, is_address
    from data_pipelines.errors import UserError
    from recsys.config.experiment import load_config
    from recsys.training.faults import InterruptedTrainingError
    from recsys.training.train import train

    experiment = load_config(config, overrides or ())
    streams = is_address(dataset) and experiment.train.mix_shards is not None
    if cache is not None and not streams:
        raise UserError("--cache is for a DATASET at an address that is trained with train.mix_shards: leave it out.")
    if streams:
        data = Dataset.stream(dataset, cache_bytes=None if cache is None else int(cache * (1 << 30)))
    else:
        data = Dataset.open(fetched(dataset))
    rows = data.splits["train"] * experiment.train.epochs
    try:
        with progress_bar("training", rows) as advance:
            result = train(experiment, data, run, resume=resume, on_step=advance)
    except InterruptedTrainingError as stop:
        typer.echo(f"recsys: {stop}", err=True)
        raise typer.Exit(1) from None
    finish(result.summary(), json, command("evaluate", run))


@app.command("evaluate")
def evaluate_verb(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="What `recsys train` wrote.", parser=local_folder)],
    overrides: PolicyKeys = None,
    dataset: Annotated[Path | None, typer.Option(help="Data set; by default, the one of the training.")] = None,
    split: Annotated[str, typer.Option(help="train, valid or test.")] = "test",
    slice_by: Annotated[str | None, typer.Option(help="Also report metrics for each value of this key column.")] = None,
    baselines: Baselines = None,
    ranking: Annotated[
        bool,
        typer.Option(
            "--ranking", help="Also rank all items for each user, and compare with popularity and own repeats."
        ),
    ] = False,
    k: Annotated[int, typer.Option("--k", min=1, help="With --ranking: length of the lists.")] = 20,
    item: Annotated[
        str | None, typer.Option(help="With --ranking: the column of items, if the config does not name it.")
    ] = None,
    off_policy: OffPolicy = False,
    device: ScoredOn = "cpu",
    json: Json = False,
) -> None:
    """Score a split with a run's weights, measure everything, and compare the model with baselines."""
    from data_pipelines.dataset.dataset import Dataset
    from data_pipelines.dataset.unseen import unseen_shares
    from data_pipelines.errors import Notice, UserError
    from recsys.evaluation.baselines.measure import FITS
    from recsys.evaluation.evaluate import dataset_of, evaluate
    from recsys.evaluation.plausibility import warn_of_implausible
    from recsys.evaluation.ranking import rank
    from recsys.evaluation.standing import fit_baselines
    from recsys.evaluation.table_ranks import shown_ranks
    from recsys.reports.advice import standing

    if overrides and not off_policy:
        raise UserError(f"{overrides[0]!r} is for --off-policy: add the option, or remove the key.")
    data = Dataset.open(dataset or dataset_of(run))
    decided = _off_policy(run, data, split, overrides or ()) if off_policy else None
    evaluation = evaluate(run, data, split, slice_by=slice_by, device=device)
    result: dict[str, Any] = {split: evaluation.summary().model_dump()}
    result["effective_rank"] = shown_ranks(evaluation.ranks, as_json=json)
    unseen = unseen_shares(data.schema, data.frame(split))
    result["unseen"] = {name: unknown for name, (_, unknown) in unseen.items() if unknown > 0}
    for task, metrics in evaluation.tasks.items():
        if "auc" in metrics:
            warn_of_implausible(data, split, task, metrics["auc"], evaluation.features)
    if evaluation.slices is not None:
        result["slices"] = {row.pop("value"): row for row in evaluation.slices.to_dicts()}
    if ranking:
        result["ranking"] = vars(rank(run, data, split, k=k, item=item))
    elif data.config.drawing is not None:
        warnings.warn(
            f"the metrics compare each positive with {data.config.drawing.negatives} drawn negatives, so they are "
            "too optimistic and may order models differently from a ranking of all items: see --ranking.",
            Notice,
            stacklevel=2,
        )
    if baselines is not False:
        fitted = fit_baselines(data, evaluation.features, list(FITS) if baselines else None)
        found, measured = standing(run, data, evaluation, *fitted)
        result["standing"] = found.model_dump(mode="json") if json else found.lines()
        if baselines:
            result["baselines"] = measured
    if decided is not None:
        result["off_policy"] = decided.model_dump(mode="json") if json else decided.lines()
    finish(result, json, command("export", run, "ARTIFACT"))


def _off_policy(run: Path, dataset: "Dataset", split: str, overrides: Sequence[str]) -> "OffPolicyResult":
    from data_pipelines.errors import UserError
    from recsys.config.experiment import stored_config
    from recsys.evaluation.off_policy import evaluate_off_policy

    for key in overrides:
        if not key.startswith("off_policy."):
            raise UserError(f"{key!r} would need another training: only keys of off_policy can be set here.")
    return evaluate_off_policy(run, dataset, stored_config(run / "config.yaml", overrides), split)


@app.command("tune")
def tune_verb(
    config: Config,
    dataset: DataFolder,
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="Folder to write, or to resume.")],
    overrides: Overrides = None,
    jobs: Jobs = None,
    threads: Threads = 1,
    engine: EngineName = "local",
    address: Address = None,
    json: Json = False,
) -> None:
    """Search the keys of the config's `tune.space`; run it again to resume."""
    from data_pipelines.dataset.dataset import Dataset
    from recsys.config.experiment import load_config
    from recsys.studies.tuning import tune

    trials, data = load_config(config, overrides or ()).tune.trials, Dataset.open(dataset)
    with (
        trial_engine(engine, address, jobs=jobs, threads=threads) as carries_out,
        progress_bar("tuning", trials, unit="trials") as advance,
    ):
        tuned = tune(config, data, study, carries_out, tuple(overrides or ()), report=advance)
    finish(tuned, json, command("train", tuned.best, dataset, "RUN"))
