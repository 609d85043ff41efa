"""A training with one call: what ``recsys train`` does."""

from pathlib import Path

from data_pipelines.dataset.dataset import Dataset
from recsys.config.experiment import ExperimentConfig, resolve_monitor
from recsys.runs.run import finished_meta, run_at
from recsys.training.faults import memory_guard
from recsys.training.results import Result
from recsys.training.trainer import OnEval, OnStep, Trainer

__all__ = ["train"]


def train(
    config: ExperimentConfig,
    dataset: Dataset,
    run: Path | str,
    *,
    resume: bool = False,
    on_step: OnStep | None = None,
    on_eval: OnEval | None = None,
) -> Result:
    """Train a ranker on ``dataset`` and write a run directory; under ``torchrun`` every rank calls this.

    Args:
        config: The experiment.
        dataset: What ``prepare`` made of the config's ``data``.
        run: A folder that all ranks see, or an address at an object store.
        resume: Continue from the last checkpoint of ``run`` to the same weights as without the interruption; start
            from the beginning if there is none. A finished run is left as it is.
        on_step: Called after every step with the number of rows in it (of all ranks) and a note.
        on_eval: Called after every evaluation with the step and the monitored value, unless that is NaN; an exception
            that it raises ends the training.

    Returns:
        How the training ended.

    Raises:
        UserError: The config does not fit the data, ``run`` exists, or memory ran out.
        DivergedError: The loss is NaN or infinite, or has diverged; the batch is saved.
        InterruptedTrainingError: SIGTERM or SIGINT was received; a checkpoint was written.

    Example:
        >>> config = rs.load_config("experiment.yaml")
        >>> result = rs.train(config, rs.Dataset.open(Path("dataset")), "run")
        >>> 0 < result.valid["clicked"]["auc"] < 1
        True
    """
    if resume and (finished := finished_meta(run_at(run), resolve_monitor(config))):
        return Result.model_validate(finished["result"] | {"run": run})
    with memory_guard(config.train.batch_size), Trainer(config, dataset, run, on_step=on_step, on_eval=on_eval) as it:
        return it.fit(resume=resume)
