"""A search over config values with Optuna: resumable, with parallel trials, and early stopping of poor ones."""

import itertools
import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import polars as pl
import yaml
from pydantic import BaseModel, ConfigDict

from data_pipelines.dataset.dataset import Dataset
from data_pipelines.disk.storage import write_file
from data_pipelines.errors import UserError
from data_pipelines.notebook import html_table
from recsys.config.experiment import ExperimentConfig, import_extensions
from recsys.config.tune import Range, TuneConfig
from recsys.config.validation import parse_config
from recsys.config.yaml_files import override, read_yaml
from recsys.training.faults import DivergedError
from recsys.training.train import train
from recsys.trials.engines import Engine

if TYPE_CHECKING:
    import optuna

JOURNAL_FILE, BEST_FILE, TRIALS_FILE = "journal.log", "best.yaml", "trials.parquet"


class Tuned(BaseModel):
    """What a search found.

    Attributes:
        best: The best config, ready for ``recsys train``.
        run: The run of the best trial.
        value: Its monitored value on the valid split.
        trials: Finished trials, with those that were pruned or failed.
        failed: How many of them failed.
        chosen: What the search chose, by key.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    best: Path
    run: Path
    value: float
    trials: int
    failed: int
    chosen: dict[str, Any]

    def _repr_html_(self) -> str:
        found = {"value": self.value, "trials": self.trials, "failed": self.failed, "run": self.run}
        return html_table(f"Search, best config {self.best}", found | self.chosen)


@dataclass(frozen=True)
class _Outcome:
    """The result of a trial: a value, or the reason why there is no value."""

    value: float | None = None
    state: Literal["complete", "pruned", "fail"] = "complete"
    reason: str = ""


def tune(
    config: Path,
    dataset: Dataset,
    study: Path,
    engine: Engine,
    overrides: tuple[str, ...] = (),
    *,
    report: Callable[[int, str], None] | None = None,
) -> Tuned:
    """Search the ``tune.space`` of ``config``; continue ``study`` if it is there. One job always tries the same values.

    Args:
        config: The experiment's YAML.
        dataset: The data set of all trials.
        study: Folder of the search.
        engine: Runs the trials.
        overrides: ``KEY=VALUE`` of the config.
        report: Called after every trial with 1 and a note.

    Raises:
        UserError: Optuna is not installed, the space is empty or names an unknown key, ``study`` searches another
            space, there is no valid split, or no trial ended with a value.

    Example:
        >>> from recsys.trials.engines import processes
        >>> dataset = rs.Dataset.open(Path("dataset"))
        >>> space = "tune={trials: 2, space: {train.dense.learning_rate: {low: 0.001, high: 0.01}}}"
        >>> with processes(jobs=1) as engine:
        ...     tuned = rs.tune(Path("experiment.yaml"), dataset, Path("search"), engine, (space,))
        >>> list(tuned.chosen)
        ['train.dense.learning_rate']
    """
    library = optuna_library()
    content = override(read_yaml(config), overrides)
    import_extensions(content, str(config))
    experiment = parse_config(ExperimentConfig, content, source=str(config))
    space = experiment.tune.space
    if not space:
        raise UserError(f"{config}: tune.space is empty: name at least one key to search, and its low and high.")
    for key, span in space.items():
        _parse(content, {key: span.choices[0] if span.choices else span.low}, str(config))
    if not dataset.splits.get("valid"):
        raise UserError(f"{dataset.path} has no valid split, on which trials are compared: set data.split.")
    own = _own_values(experiment, space) if experiment.tune.include_config else None
    _open(study, content)
    search = _search(library, study, experiment.name)
    _try_first(library, search, space, own)
    running: dict[int, optuna.Trial] = {}

    def calls() -> Iterator[Callable[[], _Outcome]]:
        """Trials, until enough have ended or are running."""
        for number in itertools.count():
            ended = _ended(library, search)
            enough = len(ended) + len(running) >= experiment.tune.trials
            if enough or _budget_is_spent(experiment.tune, ended, engine.jobs):
                return
            search.sampler = library.samplers.TPESampler(seed=experiment.seed + len(search.trials))
            trial = running[number] = search.ask()
            chosen = _parse(content, {key: _suggest(trial, key, span) for key, span in space.items()}, str(config))
            yield partial(_carry_out, chosen, dataset.path.resolve(), study.resolve(), trial.number)

    for number, outcome in engine.run(calls()):
        trial = running.pop(number)
        trial.set_user_attr("reason", outcome.reason)
        search.tell(trial, outcome.value, library.trial.TrialState[outcome.state.upper()])
        _write_trials(search, study)
        if report is not None:
            report(1, f"best {search.best_value:.5f}" if _best(search) else "none has ended well")
    return _found(library, search, study, content, space, str(config))


def _found(
    library: Any, search: "optuna.Study", study: Path, content: dict[str, Any], space: dict[str, Range], source: str
) -> Tuned:
    """What the search found; the best config is written.

    Raises:
        UserError: No trial ended with a value.
    """
    ended = _ended(library, search)
    if not _best(search):
        reasons = " and ".join({reason: None for trial in ended if (reason := trial.user_attrs.get("reason"))})
        raise UserError(
            f"{study}: every trial diverged or was stopped early; search other values in tune.space, such as lower "
            f"learning rates, in another folder. Reasons: {reasons or 'nothing'}."
        )
    assignments = {key: _value(span, search.best_params[key]) for key, span in space.items()}
    best = _parse(content, assignments, source).model_dump(mode="json")
    write_file(study / BEST_FILE, yaml.safe_dump(best, sort_keys=False, allow_unicode=True))
    failed = sum(trial.state is library.trial.TrialState.FAIL for trial in ended)
    return Tuned(
        best=study / BEST_FILE,
        run=_run_of(study, search.best_trial.number),
        value=search.best_value,
        trials=len(ended),
        failed=failed,
        chosen=assignments,
    )


def _own_values(config: ExperimentConfig, space: dict[str, Range]) -> dict[str, Any]:
    """The values of the space's keys in ``config`` itself.

    Raises:
        UserError: One of them is not in the space.
    """
    values: dict[str, Any] = {}
    for key, span in space.items():
        found: Any = config.model_dump(mode="json")
        for name in key.split("."):
            found = found.get(name) if isinstance(found, dict) else None
        values[key] = found
        if not span.has(values[key]):
            raise UserError(
                f"tune.include_config: {key} is {values[key]!r}, which is not in tune.space: widen the space."
            )
    return values


def _try_first(library: Any, search: "optuna.Study", space: dict[str, Range], values: dict[str, Any] | None) -> None:
    """Try ``values`` before others, unless they were tried; a trial that was killed is tried again."""
    if values is None:
        return
    suggested = {key: json.dumps(value) if space[key].choices else value for key, value in values.items()}
    states = library.trial.TrialState
    for trial in search.get_trials(deepcopy=False):
        asked = trial.system_attrs.get("fixed_params") if trial.state is states.WAITING else trial.params
        if trial.state is not states.RUNNING and asked == suggested:
            return
    search.enqueue_trial(suggested)


def _budget_is_spent(tune: TuneConfig, ended: "list[optuna.trial.FrozenTrial]", jobs: int) -> bool:
    """Whether a trial as long as the mean of those that ended would end after ``tune.minutes``."""
    seconds = [trial.duration.total_seconds() for trial in ended if trial.duration is not None]
    if tune.minutes is None or not seconds:
        return False
    return (sum(seconds) + sum(seconds) / len(seconds)) / jobs > 60 * tune.minutes


def optuna_library() -> Any:
    """Optuna, silenced.

    Raises:
        UserError: It is not installed.
    """
    try:
        import optuna
    except ModuleNotFoundError:
        raise UserError("a search needs Optuna: pip install 'sparse-recsys[tune]'.") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _search(library: Any, study: Path, name: str) -> "optuna.Study":
    backend = library.storages.journal.JournalFileBackend(str(study / JOURNAL_FILE))
    try:
        found: optuna.Study = library.create_study(
            study_name=name,
            storage=library.storages.JournalStorage(backend),
            direction="maximize",
            sampler=library.samplers.RandomSampler(),  # draws nothing: each request for a trial has its own sampler
            pruner=library.pruners.MedianPruner(),
            load_if_exists=True,
        )
    except (ValueError, KeyError) as error:
        raise UserError(
            f"{study / JOURNAL_FILE} is damaged ({type(error).__name__}): restore it, or search in another folder."
        ) from error
    return found


def _carry_out(config: ExperimentConfig, dataset: Path, study: Path, number: int) -> _Outcome:
    """Train one trial; runs wherever the engine starts it."""
    library = optuna_library()
    search = _search(library, study, config.name)
    trial = library.trial.Trial(search, search.get_trials(deepcopy=False)[number]._trial_id)

    def on_eval(step: int, value: float) -> None:
        trial.report(value, step)
        if config.tune.prune and trial.should_prune():
            raise library.TrialPruned

    run = _run_of(study, number)
    shutil.rmtree(run, ignore_errors=True)
    try:
        value = train(config, Dataset.open(dataset, verify="sizes"), run, on_eval=on_eval).value
    except library.TrialPruned:
        return _Outcome(state="pruned", reason="it was stopped early")
    except DivergedError as error:
        return _Outcome(state="pruned", reason=str(error).split(": ")[0])
    if value is None or not math.isfinite(value):
        return _Outcome(state="fail", reason="no evaluation gave train.monitor a finite value")
    return _Outcome(value)


def _run_of(study: Path, number: int) -> Path:
    return study / "trials" / f"{number:04d}"


def _open(study: Path, content: dict[str, Any]) -> None:
    """Make the study's folder, or check that it searches the same."""
    asked = {key: value for key, value in content.items() if key != "tune"} | {"space": content["tune"]["space"]}
    file = study / "search.json"
    if file.exists():
        try:
            searched = json.loads(file.read_bytes())
        except ValueError:
            raise UserError(f"{file} is damaged: restore it, or search in another folder.") from None
        if searched != json.loads(json.dumps(asked)):
            raise UserError(f"{study} is the search of another config: name another folder for this one.")
        return
    if study.exists():
        raise UserError(f"{study} exists and is not a search: name another folder.")
    study.mkdir(parents=True)
    write_file(file, json.dumps(asked))


def _parse(content: dict[str, Any], assignments: dict[str, Any], source: str) -> ExperimentConfig:
    settings = [f"{key}={json.dumps(value)}" for key, value in assignments.items()]
    return parse_config(ExperimentConfig, override(content, settings), source=source)


def _suggest(trial: "optuna.Trial", key: str, span: Range) -> Any:
    if span.choices is not None:
        return _value(span, trial.suggest_categorical(key, [json.dumps(choice) for choice in span.choices]))
    assert span.low is not None
    assert span.high is not None
    if isinstance(span.low, int) and isinstance(span.high, int):
        return trial.suggest_int(key, span.low, span.high, log=span.log)
    return trial.suggest_float(key, span.low, span.high, log=span.log)


def _value(span: Range, suggested: Any) -> Any:
    """A choice may be a list, which Optuna cannot hold: it is kept as JSON."""
    return json.loads(suggested) if span.choices is not None else suggested


def _best(search: "optuna.Study") -> bool:
    """Whether any trial has ended with a finite value."""
    return any(trial.value is not None and math.isfinite(trial.value) for trial in search.get_trials(deepcopy=False))


def _ended(library: Any, search: "optuna.Study") -> "list[optuna.trial.FrozenTrial]":
    """Trials that ended: completed, pruned or failed."""
    states = (library.trial.TrialState.COMPLETE, library.trial.TrialState.PRUNED, library.trial.TrialState.FAIL)
    return search.get_trials(deepcopy=False, states=states)


def _write_trials(search: "optuna.Study", study: Path) -> None:
    """One row per trial: number, state, value, why there is no value, and the values of the keys."""
    rows = [
        {"trial": trial.number, "state": trial.state.name.lower(), "value": trial.value}
        | {"reason": trial.user_attrs.get("reason", "")}
        | {key: str(value) for key, value in trial.params.items()}
        for trial in search.get_trials(deepcopy=False)
    ]
    buffer = BytesIO()
    pl.DataFrame(rows, infer_schema_length=None).write_parquet(buffer)
    write_file(study / TRIALS_FILE, buffer.getvalue())
