"""One day of daily training: extend the data set, train from yesterday's run, compare, export, switch or refuse.

Every step writes something that is complete or absent, so a day that was killed resumes at the step that was
interrupted. A day is done when its line is in the ledger (see :mod:`recsys.daily.history`).
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from data_pipelines.dataset.dataset import Dataset, prepare
from data_pipelines.disk.storage import checksum, fingerprint
from data_pipelines.errors import UnavailableError, UserError
from data_pipelines.features.plan import Plan
from data_pipelines.locations import expand
from data_pipelines.names import TIME
from data_pipelines.redaction import redact
from recsys.config.experiment import ExperimentConfig
from recsys.daily.gates import check_day, reasons_against, times_of
from recsys.daily.history import ARTIFACT, DATASET, DAYS, KEPT, RUN, Begun, Day, History
from recsys.evaluation.standing import Difference, compare
from recsys.exporting.export import artifact_logits, compare_with_run, export_run
from recsys.metrics.registry import main_metric
from recsys.training.faults import DivergedError
from recsys.training.train import train
from recsys.training.trainer import OnStep
from serving.artifact.artifact import Artifact
from serving.artifact.refresh import with_state
from serving.batch.inputs import Input

YESTERDAY = "yesterday"
Say = Callable[[str], None]


def run_day(
    config: ExperimentConfig,
    history: History,
    log: str,
    *,
    say: Say = lambda step: None,
    on_step: OnStep | None = None,
) -> tuple[Day, bool]:
    """Do one day, or continue it after a kill; the day, and whether this call did it.

    A day whose log has the content of an earlier day's changes nothing.

    Args:
        config: The experiment. Its ``data.log`` is not read, and from the second day on ``train.start`` is yesterday's
            model.
        history: The opened folder of all days.
        log: File, folder, glob or address of the rows of the day.
        say: Called with the name of each step as it begins.
        on_step: Called after every step of the training (see :func:`recsys.training.train.train`).

    Raises:
        UserError: The day is refused: it cannot be read, is empty, late or unlike the days before, or cannot be trained
            on. Everything is as it was before the call.
        UnavailableError: A disk is full. The same call continues the day.
        InterruptedTrainingError: SIGTERM or SIGINT was received. The same call continues the day.
    """
    say("reading the log")
    log_checksum = _checksum_of(log, config)
    if (done := history.day_of(log_checksum)) is not None:
        history.remove_old(config.daily.keep)
        return done, False
    content = config.model_dump(mode="json", exclude={"daily", "ablation", "tune"})
    begun = Begun(log=redact(log), log_checksum=log_checksum, config=fingerprint(content))
    history.begin(begun)
    try:
        day = _work(config, history, log, begun, say, on_step)
    except UnavailableError:
        raise
    except DivergedError:
        history.discard()
        raise UserError(
            f"{begun.log}: the loss of the training on this day became NaN, infinite or very large: look at the "
            "rows of the day, or lower train.dense.learning_rate or train.tables.learning_rate."
        ) from None
    except UserError:
        history.discard()
        raise
    say("recording the day")
    history.record(day)
    say("switching")
    history.switch()
    say("removing old days")
    history.remove_old(config.daily.keep)
    return day, True


def _checksum_of(log: str, config: ExperimentConfig) -> str:
    """Of the content of the files of a log; of a remote file, what its store says about its content."""
    found = Input.find(expand(log), Plan.of(config.data))
    if any("://" in file for file in found.files):
        return found.fingerprint()
    return fingerprint([checksum(Path(file)).xxh3 for file in found.files])


def _work(config: ExperimentConfig, history: History, log: str, begun: Begun, say: Say, on_step: OnStep | None) -> Day:
    folder, last, number = history.work, history.last, len(history.days) + 1
    before = None if last is None else Dataset.open(history.path(last.number, DATASET))
    say("preparing the data set")
    data = (
        Dataset.open(folder / DATASET)
        if (folder / DATASET).exists()
        else prepare(
            config.data, folder / DATASET, log=log, extend=None if before is None else before.path, late="count"
        )
    )
    say("checking the day")
    times = times_of(data)
    late = check_day(config.daily, begun.log, data, times, before, None if last is None else last.latest)
    say("training")
    if last is not None:
        start = str(history.path(last.model, RUN).resolve())
        config = config.model_copy(update={"train": config.train.model_copy(update={"start": start})})
    train(config, data, folder / RUN, resume=True, on_step=on_step)
    say("exporting")
    made = folder / ARTIFACT
    if not made.exists():
        export_run(folder / RUN, made, dataset=data.path)
    artifact = Artifact.open(made, verify="full")
    say("comparing")
    task, settings = next(iter(config.data.tasks.items()))
    metric = main_metric(settings.kind)
    verified, today_NT = compare_with_run(artifact, folder / RUN, data, "test")
    yesterday = None if last is None else Artifact.open(history.folder / last.artifact)
    difference = None if yesterday is None else _compare(today_NT, yesterday, data)
    reasons = list(reasons_against(config.daily, metric, verified, difference))
    metrics = {"run": verified.run[task][metric.name], "artifact": verified.artifact[task][metric.name]}
    if difference is not None:
        metrics[YESTERDAY] = difference.baseline
    if last is None and reasons:
        raise UserError(f"{begun.log}: the first day has no model to keep instead: {'; '.join(reasons)}.")
    switched = not reasons
    say("bringing the past forward")
    serving = f"{DAYS}/{folder.name}/{ARTIFACT}"
    if last is not None and yesterday is not None and not switched:
        serving = _kept(history, last, yesterday, data)
    return Day(
        number=number,
        log=begun.log,
        log_checksum=begun.log_checksum,
        rows=data.splits,
        refused=data.profile["refused"],
        late=late,
        latest=_latest(times, last),
        switched=switched,
        reasons=reasons,
        model=number if switched or last is None else last.model,
        artifact=serving,
        metric=metric.name,
        metrics=metrics,
        difference=difference,
    )


def _compare(today_NT: NDArray[np.float32], yesterday: Artifact, data: Dataset) -> Difference:
    """Both artifacts on the test rows of the day, on which neither was trained."""
    found = compare(data, "test", today_NT[:, 0], {YESTERDAY: artifact_logits(yesterday, data, "test")[:, 0]})
    return found.against[YESTERDAY][found.main]


def _kept(history: History, last: Day, yesterday: Artifact, data: Dataset) -> str:
    """Yesterday's artifact with today's past; the artifact itself if it reads no past."""
    if yesterday.state is None:
        return last.artifact
    if not (history.work / KEPT).exists():
        with_state(yesterday, data.path / "state", history.work / KEPT)
    return f"{DAYS}/{history.work.name}/{KEPT}"


def _latest(times: pl.DataFrame | None, last: Day | None) -> int | None:
    if times is None:
        return None
    newest: int = times.select(pl.col(TIME).max()).item()
    return newest if last is None or last.latest is None else max(newest, last.latest)
