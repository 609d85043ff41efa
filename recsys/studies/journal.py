"""The trials of a search, as Optuna keeps them: one journal per study, which several processes may share."""

from collections.abc import Mapping
from io import BytesIO
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from data_pipelines.disk.storage import write_file
from data_pipelines.errors import UserError
from recsys.evaluation.monitor import shown_value

if TYPE_CHECKING:
    import optuna

JOURNAL_FILE, TRIALS_FILE = "journal.log", "trials.parquet"


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


def open_search(library: Any, study: Path, name: str) -> "optuna.Study":
    """The search of a study's folder, which is made if it is not there.

    Args:
        library: As :func:`optuna_library` gives it.
        study: Folder of the search.
        name: Of the experiment.

    Raises:
        UserError: The journal is damaged.
    """
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


def value_of(search: "optuna.Study", suggested: Mapping[str, Any]) -> float | None:
    """What a trial of these values gave; ``None`` if none has ended well."""
    return next((trial.value for trial in _ended_well(search) if trial.params == suggested), None)


def has_best(search: "optuna.Study") -> bool:
    """Whether any trial has ended well."""
    return bool(_ended_well(search))


def _ended_well(search: "optuna.Study") -> "list[optuna.trial.FrozenTrial]":
    """Trials that were trained to their end and gave a finite value."""
    complete = (trial for trial in search.get_trials(deepcopy=False) if trial.state.name == "COMPLETE")
    return [trial for trial in complete if trial.value is not None and isfinite(trial.value)]


def ended_trials(library: Any, search: "optuna.Study") -> "list[optuna.trial.FrozenTrial]":
    """Trials that ended: completed, pruned or failed."""
    states = (library.trial.TrialState.COMPLETE, library.trial.TrialState.PRUNED, library.trial.TrialState.FAIL)
    return search.get_trials(deepcopy=False, states=states)


def write_trials(search: "optuna.Study", study: Path) -> None:
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


def note_on(search: "optuna.Study", number: int, monitor: Mapping[str, float]) -> str:
    """What a trial gave, after how long, and the best so far."""
    trial = search.get_trials(deepcopy=False)[number]
    reason = trial.user_attrs["reason"]
    gave = reason if reason or trial.value is None else shown_value(monitor, trial.value)
    took = "" if trial.duration is None else f" after {trial.duration.total_seconds() / 60:.1f} minutes"
    best = "none has ended well"
    if has_best(search):
        best = f"best: {shown_value(monitor, search.best_value)} (trial {search.best_trial.number})"
    return f"trial {number}: {gave}{took}; {best}"
