"""Comparison of a run with baselines, and a likely reason if it loses."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from data_pipelines.dataset.dataset import Dataset
from data_pipelines.dataset.unseen import unseen_shares
from data_pipelines.disk.storage import open_directory
from recsys.config.experiment import ExperimentConfig, stored_config
from recsys.evaluation.baselines.base import Fitted
from recsys.evaluation.baselines.measure import FITS, write_baselines
from recsys.evaluation.evaluate import Evaluation
from recsys.evaluation.standing import Standing, compare
from recsys.runs.checkpoints import CONFIG_FILE
from recsys.training.results import Result

_UNSEEN = 0.5
"""Share of unseen ids from which a feature is named."""
_DRIFT = 1.25
"""Ratio of mean labels from which it is said that the log drifts."""


def standing(
    run: Path, dataset: Dataset, evaluation: Evaluation, baselines: Mapping[str, Fitted], note: str = ""
) -> tuple[Standing, dict[str, dict[str, float]]]:
    """Where a finished run stands on the split that was evaluated, and the metrics of the baselines, which it keeps.

    Args:
        run: The run's folder.
        dataset: The data set that was evaluated.
        evaluation: Of the run's weights.
        baselines: What to compare with, as :func:`~recsys.evaluation.standing.fit_baselines` gives it.
        note: Which baselines are missing, and why.
    """
    config, split = stored_config(run / CONFIG_FILE), evaluation.split
    result = Result.model_validate(open_directory(run, "run", verify="sizes").meta["result"] | {"run": run})
    measured = write_baselines(run, dataset, split, [name for name in baselines if name in FITS], fitted=baselines)
    logits = {name: baseline.logits(split) for name, baseline in baselines.items()}
    own = evaluation.predictions[f"{next(iter(evaluation.tasks))}:logit"].to_numpy()
    found = compare(dataset, split, own, logits, note=note)
    return found.model_copy(update={"hint": why_it_loses(found, dataset, config, result)}), measured


def why_it_loses(standing: Standing, dataset: Dataset, config: ExperimentConfig, result: Result) -> str:
    """The likeliest reason for losing to a baseline, and what to change; empty if the model loses to none.

    The reasons, in the order in which they are checked: training ended too early; the first epoch was the best; ids
    that training did not see; a different label rate than in training; no features of the past. The first one that
    applies is given.

    Args:
        standing: As :func:`compare` found it.
        dataset: The data set of the training.
        config: The run's config.
        result: How its training ended.
    """
    if not standing.lost_to:
        return ""
    steps_per_epoch = max(1, math.ceil(dataset.splits["train"] / config.train.batch_size))
    if result.stopped == "epochs" and result.best_step == result.steps:
        return (
            f"the last evaluation was the best, so {config.train.epochs} epochs are too few: raise train.epochs, or "
            "the learning rates of train.tables and train.dense."
        )
    if result.best_step <= steps_per_epoch < result.steps:
        return (
            "the valid split was best after the first epoch, so the model overfits: lower the learning rates, raise "
            "train.tables.weight_decay, make model.dim smaller, or set train.evaluate_every below an epoch "
            f"({steps_per_epoch} steps)."
        )
    unseen = {
        name: unknown for name, (_, unknown) in unseen_shares(dataset.schema, dataset.frame(standing.split)).items()
    }
    name = max(unseen, key=lambda name: unseen[name], default=None)
    if name is not None and unseen[name] > _UNSEEN:
        return (
            f"{unseen[name]:.0%} of the ids of {name} in the {standing.split} rows were not seen in training: set "
            f"train.unknown.{name}, so that its OOV row is trained, or leave {name} out (train.features)."
        )
    before, now = (float(np.nanmean(dataset.labels(split)[:, 0])) for split in ("train", standing.split))
    if before > 0 and now > 0 and max(before / now, now / before) > _DRIFT:
        return (
            f"the mean label is {now:.4g} in the {standing.split} rows and was {before:.4g} in training: the log "
            "drifts, so train on later rows only, or more often."
        )
    kinds = {feature.kind_name() for feature in dataset.config.features.values()}
    if not kinds & {"history", "statistic"} and dataset.config.time is not None:
        return (
            "the config has no histories and no statistics: add the rates and counts of user and item "
            "(`kind: statistic`), and the user's last positives (`kind: history`)."
        )
    return (
        "nothing that is checked explains it: search learning rates and sizes (`recsys fit`, or its --minutes raised), "
        "or take the baseline."
    )
