"""A search over config values by Optuna: resumable, trials side by side, hopeless ones stopped early."""

import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import yaml

from data_pipelines.dataset.dataset import Dataset
from data_pipelines.disk.storage import write_file
from data_pipelines.errors import UserError
from recsys.config.experiment import ExperimentConfig
from recsys.config.tune import Range
from recsys.config.validation import parse_config
from recsys.config.yaml_files import override, read_yaml
from recsys.training.faults import DivergedError
from recsys.training.trainer import train
from recsys.trials.engines import Engine

if TYPE_CHECKING:
    import optuna

JOURNAL_FILE, BEST_FILE, TRIALS_FILE = "journal.log", "best.yaml", "trials.parquet"


@dataclass(frozen=True)
class Tuned:
    """What a search found.

    Attributes:
        best: The config that did best, ready for ``recsys train``.
        value: Its monitored value on the valid split.
        assignments: What the search chose, by key.
        trials: Finished trials, pruned ones included.
    """

    best: Path
    value: float
    assignments: dict[str, Any]
    trials: int


def tune(
    config: Path,
    dataset: Dataset,
    study: Path,
    engine: Engine,
    overrides: tuple[str, ...] = (),
    *,
    report: Callable[[int, str], None] | None = None,
) -> Tuned:
    """Search the ``tune.space`` of ``config``; go on with ``study`` if it is there.

    With one job an undisturbed search always tries the same values.

    Args:
        engine: Carries out the trials.
        report: Called after every trial with 1 and a note.

    Raises:
        UserError: Optuna is not installed, the space is empty or names an unknown key, ``study`` searches another
            space, or no trial ended with a value.
    """
    library = _optuna()
    content = override(read_yaml(config), overrides)
    experiment = parse_config(ExperimentConfig, content, source=str(config))
    space = experiment.tune.space
    if not space:
        raise UserError(f"{config}: tune.space is empty: name at least one key to search, and its low and high.")
    for key, span in space.items():
        _parse(content, {key: span.choices[0] if span.choices else span.low}, str(config))
    _open(study, content)
    search = _search(library, study, experiment.name)
    running: dict[int, optuna.Trial] = {}

    def calls() -> Iterator[Callable[[], float | None]]:
        """Trials, as long as more are wanted than have ended or are being worked on."""
        for number in itertools.count():
            if len(_ended(library, search)) + len(running) >= experiment.tune.trials:
                return
            search.sampler = library.samplers.TPESampler(seed=experiment.seed + len(search.trials))
            trial = running[number] = search.ask()
            chosen = _parse(content, {key: _suggest(trial, key, span) for key, span in space.items()}, str(config))
            yield partial(_carry_out, chosen, dataset.path.resolve(), study.resolve(), trial.number)

    for number, value in engine.run(calls()):
        state = library.trial.TrialState.PRUNED if value is None else library.trial.TrialState.COMPLETE
        search.tell(running.pop(number), value, state)
        _write_trials(search, study)
        if report is not None:
            report(1, f"best {search.best_value:.5f}" if _best(search) else "none has ended well")
    if not _best(search):
        raise UserError(
            f"{study}: every trial diverged or was stopped early; search other values in tune.space, such as lower "
            "learning rates, in another folder."
        )
    assignments = {key: _value(span, search.best_params[key]) for key, span in space.items()}
    best = _parse(content, assignments, str(config)).model_dump(mode="json")
    write_file(study / BEST_FILE, yaml.safe_dump(best, sort_keys=False, allow_unicode=True))
    return Tuned(study / BEST_FILE, search.best_value, assignments, len(_ended(library, search)))


def _optuna() -> Any:
    try:
        import optuna
    except ModuleNotFoundError:
        raise UserError("recsys tune needs Optuna: pip install 'sparse-recsys[tune]'.") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _search(library: Any, study: Path, name: str) -> "optuna.Study":
    backend = library.storages.journal.JournalFileBackend(str(study / JOURNAL_FILE))
    found: optuna.Study = library.create_study(
        study_name=name,
        storage=library.storages.JournalStorage(backend),
        direction="maximize",
        sampler=library.samplers.RandomSampler(),  # draws nothing: whoever asks for a trial brings a sampler
        pruner=library.pruners.MedianPruner(),
        load_if_exists=True,
    )
    return found


def _carry_out(config: ExperimentConfig, dataset: Path, study: Path, number: int) -> float | None:
    """The monitored value of a trial; ``None`` if it diverged or was stopped early. Runs where the engine likes."""
    library = _optuna()
    search = _search(library, study, config.name)
    trial = library.trial.Trial(search, search.get_trials(deepcopy=False)[number]._trial_id)

    def watch(step: int, value: float) -> None:
        trial.report(value, step)
        if config.tune.prune and trial.should_prune():
            raise library.TrialPruned

    run = study / "trials" / f"{number:04d}"
    shutil.rmtree(run, ignore_errors=True)
    try:
        return train(config, Dataset.open(dataset, verify="sizes"), run, watch=watch).value
    except (library.TrialPruned, DivergedError):
        return None


def _open(study: Path, content: dict[str, Any]) -> None:
    """Make the study's folder, or check that it searches the same."""
    asked = {key: value for key, value in content.items() if key != "tune"} | {"space": content["tune"]["space"]}
    file = study / "search.json"
    if file.exists():
        if json.loads(file.read_text()) != json.loads(json.dumps(asked)):
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
    """Whether any trial has ended with a value."""
    return any(trial.value is not None for trial in search.get_trials(deepcopy=False))


def _ended(library: Any, search: "optuna.Study") -> "list[optuna.trial.FrozenTrial]":
    """Trials that ended, by themselves or early."""
    states = (library.trial.TrialState.COMPLETE, library.trial.TrialState.PRUNED)
    return search.get_trials(deepcopy=False, states=states)


def _write_trials(search: "optuna.Study", study: Path) -> None:
    """One row a trial: number, state, value, and the values of the keys."""
    rows = [
        {"trial": trial.number, "state": trial.state.name.lower(), "value": trial.value}
        | {key: str(value) for key, value in trial.params.items()}
        for trial in search.get_trials(deepcopy=False)
    ]
    buffer = BytesIO()
    pl.DataFrame(rows, infer_schema_length=None).write_parquet(buffer)
    write_file(study / TRIALS_FILE, buffer.getvalue())
