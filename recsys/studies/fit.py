"""From a log to an artifact in one call, resumable: config, data set, search, comparison with baselines, export."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

from data_pipelines.dataset.dataset import Dataset, prepare
from data_pipelines.disk.damage import read_json
from data_pipelines.disk.ledger import locked
from data_pipelines.disk.storage import write_file
from data_pipelines.errors import UserError
from data_pipelines.profile.inspection import inspect_log
from data_pipelines.profile.starter.config import starter_config
from data_pipelines.redaction import redact
from recsys.config.experiment import resolve_monitor, stored_config
from recsys.config.yaml_files import read_yaml
from recsys.evaluation.evaluate import evaluate
from recsys.evaluation.monitor import shown_value
from recsys.evaluation.standing import Standing, fit_baselines
from recsys.exporting.export import export_run
from recsys.reports.advice import standing
from recsys.reports.report import write_report
from recsys.studies.journal import optuna_library
from recsys.studies.search_space import search_space
from recsys.studies.tuning import Tuned, own_values, tune
from recsys.trials.engines import Engine
from serving.artifact.card import SplitMetrics

CONFIG, SEARCH, DATASET, STUDY = "config.yaml", "search.yaml", "dataset", "study"
ARTIFACT, REPORT, RESULT = "artifact", "report.html", "fit.json"

_MOST_TRIALS = 1000


class Fit(BaseModel):
    """What a fit found, and where it is.

    Attributes:
        summary: One sentence: whether a baseline wins on the valid split, or what the model is better than.
        search: One sentence: whether the search found something better than the config itself.
        log: The log, without credentials.
        minutes: The budget of the search.
        config: The config that was chosen, ready for ``recsys train``.
        dataset, run, artifact, report: What was made.
        trials: Trials that ended, with those that failed.
        chosen: What the search chose, by key.
        changed: What of that differs from the config itself.
        metrics: Of the chosen run, by split.
        standing: Against the baselines, by split; the choice was made on valid.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    summary: str
    search: str = ""
    log: str
    minutes: float
    config: Path
    dataset: Path
    run: Path
    artifact: Path
    report: Path
    trials: int
    failed: int
    chosen: dict[str, Any]
    changed: dict[str, Any] = {}
    metrics: dict[str, SplitMetrics]
    standing: dict[str, Standing]


def finished_fit(log: str, folder: Path, minutes: float) -> Fit | None:
    """The result of a fit of ``log`` that has finished in ``folder`` with at least this budget; ``None`` if none has.

    Raises:
        UserError: ``folder`` is the fit of another log, or no fit.
    """
    if not folder.exists() or (folder.is_dir() and all(path.name.startswith(".") for path in folder.iterdir())):
        return None
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder} exists and is not a fit: name another folder.")
    known = redact(stored_config(folder / CONFIG).data.log)
    if known != redact(log):
        raise UserError(f"{folder} is a fit of {known}, not of {redact(log)}: name another folder for this log.")
    if not (folder / RESULT).is_file():
        return None
    found = read_json(folder / RESULT, Fit)
    return found if found.minutes >= minutes else None


def fit(
    log: str,
    folder: Path,
    engine: Engine,
    *,
    minutes: float = 10.0,
    columns: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = lambda step: None,
) -> Fit:
    """Make everything from a log to an artifact in ``folder``, and choose the config by a search on the valid split.

    Call it again after an interruption, and it continues after the last step (or trial) that ended. A larger budget
    continues a finished fit. A ``config.yaml`` that is in the folder is used as it is.

    Args:
        log: File, folder, glob or address of the log.
        folder: Where everything is written.
        engine: Runs the trials of the search.
        minutes: The budget of the search: no trial is started that would probably end later, counted in trial time.
            The config that ``recsys init`` would write is always trained. Preparing, baselines and export are extra.
        columns: Label, time, user, side tables and so on, as
            :func:`~data_pipelines.profile.inspection.inspect_log` takes them; guessed where absent. They count when
            ``config.yaml`` is written; later it is used as it is.
        say: Called with the name of each step as it begins, and after each trial.

    Raises:
        UserError: The log shows nothing to learn, Optuna is not installed, ``folder`` is that of another log or in use,
            every trial failed, or what one of the steps says.

    Example:
        >>> with processes(jobs=1) as engine:  # doctest: +SKIP
        ...     found = fit("clicks.csv", Path("clicks.fit"), engine, minutes=5)
        >>> found.standing["valid"].lost_to  # doctest: +SKIP
        []
    """
    optuna_library()
    if (finished := finished_fit(log, folder, minutes)) is not None:
        return finished
    if not (folder / CONFIG).exists():
        say("inspecting the log")
        content = starter_config(inspect_log(log, **(columns or {})))
        folder.mkdir(parents=True, exist_ok=True)
        write_file(folder / CONFIG, content)
    elif any((columns or {}).values()):
        say(f"{folder / CONFIG} is used as it is: to read the log by other options, name another folder")
    with locked(folder, f"another fit is running in {folder}: wait for it, or name another folder."):
        dataset = _dataset(log, folder, say)
        say(f"searching for {minutes:g} minutes; the first trial is the config itself")
        settings = (f"tune.minutes={minutes}", f"tune.trials={_MOST_TRIALS}")
        found = tune(_write_search(folder), dataset, folder / STUDY, engine, settings, report=lambda _, note: say(note))
        result = _result(log, folder, minutes, found, dataset, say)
        write_file(folder / RESULT, result.model_dump_json(indent=1))
    return result


def _result(log: str, folder: Path, minutes: float, found: Tuned, dataset: Dataset, say: Callable[[str], None]) -> Fit:
    """Compare the best run with baselines, export it, and write its report."""
    say("comparing with baselines")
    metrics, standings = _compare(found.run, dataset)
    say("exporting")
    export_run(found.run, folder / ARTIFACT, dataset=dataset.path, replace=True)
    config = resolve_monitor(stored_config(folder / CONFIG))
    own = own_values(config, search_space(config))
    return Fit(
        summary=_summary(standings["valid"]),
        search=_searched(found, minutes, config.train.monitor or {}),
        log=redact(log),
        minutes=minutes,
        config=found.best,
        dataset=dataset.path,
        run=found.run,
        artifact=folder / ARTIFACT,
        report=write_report([found.run], folder / REPORT),
        trials=found.trials,
        failed=found.failed,
        chosen=found.chosen,
        changed={key: value for key, value in found.chosen.items() if value != own[key]},
        metrics=metrics,
        standing=standings,
    )


def _dataset(log: str, folder: Path, say: Callable[[str], None]) -> Dataset:
    """The data set in ``folder``, prepared unless it is there."""
    if (folder / DATASET).exists():
        return Dataset.open(folder / DATASET)
    say("preparing the data set")
    return prepare(stored_config(folder / CONFIG).data, folder / DATASET, log=log)


def _write_search(folder: Path) -> Path:
    """The config with the space around it; written once, because a study continues only with the same config."""
    path = folder / SEARCH
    if not path.exists():
        content = read_yaml(folder / CONFIG)
        space = {
            key: span.model_dump(mode="json", exclude_defaults=True)
            for key, span in search_space(stored_config(folder / CONFIG)).items()
        }
        content["tune"] = {"include_config": True, "space": space}
        write_file(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    return path


def _compare(run: Path, dataset: Dataset) -> tuple[dict[str, SplitMetrics], dict[str, Standing]]:
    """Metrics and standing on valid and test; the baselines are trained once."""
    metrics, standings = {}, {}
    baselines = None
    for split in ("valid", "test"):
        if dataset.splits.get(split):
            evaluation = evaluate(run, dataset, split)
            baselines = baselines or fit_baselines(dataset, evaluation.features)
            metrics[split] = evaluation.summary()
            standings[split], _ = standing(run, dataset, evaluation, *baselines)
    return metrics, standings


def _searched(found: Tuned, minutes: float, monitor: Mapping[str, float]) -> str:
    """Whether the search found something better than the config itself, on valid rows."""
    best = shown_value(monitor, found.value)
    if found.trials == 1:
        return f"{minutes:g} minutes were enough for the config itself only ({best}): a larger --minutes searches."
    if found.own_value is None:
        return f"The best of {found.trials} trials has {best}; the config itself did not end well."
    if found.value > found.own_value:
        own = shown_value(monitor, found.own_value)
        return f"The best of {found.trials} trials has {best} on valid rows, the config itself {own}."
    return f"None of {found.trials} trials was better on valid rows than the config itself ({best})."


def _summary(valid: Standing) -> str:
    lost = valid.lost_to
    if lost:
        figures = valid.against[lost[0]]
        metric, figure = next((name, figure) for name, figure in figures.items() if figure.verdict == "worse")
        return (
            f"A baseline wins on the valid split: {lost[0]} has {metric} {figure.baseline:.4f}, the model "
            f"{figure.baseline + figure.difference:.4f}. A likely reason, and what to try: {valid.hint}"
        )
    level = [name for name, figures in valid.against.items() if figures[valid.main].verdict == "level"]
    better = [name for name in valid.against if name not in level]
    parts = [f"{word} {', '.join(names)}" for word, names in (("better than", better), ("level with", level)) if names]
    return f"On the valid split the model is {' and '.join(parts)} ({valid.main})."
