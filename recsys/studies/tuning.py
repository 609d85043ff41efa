"""A search over config values with Optuna: resumable, with parallel trials, and early stopping of poor ones."""

import itertools
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict

from data_pipelines.dataset.dataset import Dataset
from data_pipelines.disk.storage import write_file
from data_pipelines.errors import UserError
from data_pipelines.notebook import html_table
from recsys.config.experiment import ExperimentConfig, import_extensions, resolve_monitor
from recsys.config.tune import Range, TuneConfig
from recsys.config.validation import parse_config
from recsys.config.yaml_files import override, read_yaml
from recsys.studies.journal import (
    ended_trials,
    has_best,
    note_on,
    open_search,
    optuna_library,
    value_of,
    write_trials,
)
from recsys.training.faults import DivergedError
from recsys.training.train import train
from recsys.trials.engines import Engine

if TYPE_CHECKING:
    import optuna

BEST_FILE = "best.yaml"


class Tuned(BaseModel):
    """What a search found.

    Attributes:
        best: The best config, ready for ``recsys train``.
        run: The run of the best trial.
        value: Its monitored value on the valid split.
        trials: Finished trials, with those that were pruned or failed.
        failed: How many of them failed.
        chosen: What the search chose, by key.
        own_value: The monitored value of the config's own values; ``None`` if they were not tried, or gave none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    best: Path
    run: Path
    value: float
    trials: int
    failed: int
    chosen: dict[str, Any]
    own_value: float | None = None

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
        report: Called after every trial with 1 and a note: the trial's value and time, and the best value so far.

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
    own = _suggested(own_values(experiment, space), space) if experiment.tune.include_config else None
    monitor = resolve_monitor(experiment).train.monitor or {}
    _open(study, content)
    search = open_search(library, study, experiment.name)
    _try_first(library, search, own)
    running: dict[int, optuna.Trial] = {}

    def calls() -> Iterator[Callable[[], _Outcome]]:
        """Trials, until enough have ended or are running."""
        for number in itertools.count():
            ended = ended_trials(library, search)
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
        write_trials(search, study)
        if report is not None:
            report(1, note_on(search, trial.number, monitor))
    found = _found(library, search, study, content, space, str(config))
    return found if own is None else found.model_copy(update={"own_value": value_of(search, own)})


def _found(
    library: Any, search: "optuna.Study", study: Path, content: dict[str, Any], space: dict[str, Range], source: str
) -> Tuned:
    """What the search found; the best config is written.

    Raises:
        UserError: No trial ended with a value.
    """
    ended = ended_trials(library, search)
    if not has_best(search):
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


def own_values(config: ExperimentConfig, space: Mapping[str, Range]) -> dict[str, Any]:
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


def _suggested(values: Mapping[str, Any], space: Mapping[str, Range]) -> dict[str, Any]:
    """``values`` as Optuna holds them."""
    return {key: json.dumps(value) if space[key].choices else value for key, value in values.items()}


def _try_first(library: Any, search: "optuna.Study", suggested: Mapping[str, Any] | None) -> None:
    """Try these values before others, unless they were tried; a trial that was killed is tried again."""
    if suggested is None:
        return
    states = library.trial.TrialState
    for trial in search.get_trials(deepcopy=False):
        asked = trial.system_attrs.get("fixed_params") if trial.state is states.WAITING else trial.params
        if trial.state is not states.RUNNING and asked == suggested:
            return
    search.enqueue_trial(dict(suggested))


def _budget_is_spent(tune: TuneConfig, ended: "list[optuna.trial.FrozenTrial]", jobs: int) -> bool:
    """Whether a trial as long as the mean of those that ended would end after ``tune.minutes``."""
    seconds = [trial.duration.total_seconds() for trial in ended if trial.duration is not None]
    if tune.minutes is None or not seconds:
        return False
    return (sum(seconds) + sum(seconds) / len(seconds)) / jobs > 60 * tune.minutes


def _carry_out(config: ExperimentConfig, dataset: Path, study: Path, number: int) -> _Outcome:
    """Train one trial; runs wherever the engine starts it."""
    library = optuna_library()
    search = open_search(library, study, config.name)
    trial = library.trial.Trial(search, search.get_trials(deepcopy=False)[number]._trial_id)

    data = Dataset.open(dataset, verify="sizes")
    steps_per_epoch = math.ceil(data.splits["train"] / config.train.batch_size)

    def on_eval(step: int, value: float) -> None:
        # Trials may have batches of other sizes: they are compared after the same part of their epochs.
        trial.report(value, round(100 * step / steps_per_epoch))
        if config.tune.prune and trial.should_prune():
            raise library.TrialPruned

    run = _run_of(study, number)
    shutil.rmtree(run, ignore_errors=True)
    try:
        value = train(config, data, run, on_eval=on_eval).value
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
