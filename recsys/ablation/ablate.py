"""An ablation study with one call: what ``recsys ablate`` does."""

from collections.abc import Callable
from pathlib import Path

from data_pipelines.dataset.dataset import Dataset
from recsys.ablation.outputs import write_study
from recsys.ablation.study import Progress, Study
from recsys.ablation.tables import Findings, find
from recsys.config.experiment import ExperimentConfig
from recsys.trials.engines import Engine, processes
from recsys.trials.trials import TrialStore
from recsys.trials.workers import Workers

__all__ = ["ablate", "open_study"]


def open_study(
    config: ExperimentConfig, dataset: Dataset, out: Path, engine: Engine, *, trials: Path | None = None
) -> Study:
    """The study of ``config``, which has not run yet.

    Args:
        config: The experiment; its block ``ablation`` is the study.
        dataset: What ``prepare`` made of the config's ``data``.
        out: Folder of the result.
        engine: Carries out the trials.
        trials: Folder of finished trials, which studies share; ``trials`` beside ``out`` if absent.

    Raises:
        UserError: The study names what is not there, an arm would have no feature, or a metric lacks its column.
    """
    return Study(config, dataset, Workers(dataset.path, TrialStore(trials or out.parent / "trials"), engine))


def ablate(
    config: ExperimentConfig,
    dataset: Dataset,
    out: Path | str,
    *,
    trials: Path | None = None,
    jobs: int | None = None,
    threads: int = 1,
    observe: Callable[[Progress], None] = lambda progress: None,
) -> Findings:
    """Measure which features, levers and parts of the model matter, and how certain that is.

    Trains one model per arm and seed in processes of this machine. Finished trials are kept: a study that was stopped
    resumes, and one that changed runs only what is missing. In a script, call it below ``if __name__ == "__main__":``,
    because the processes import the script.

    Args:
        config: The experiment; its block ``ablation`` is the study.
        dataset: What ``prepare`` made of the config's ``data``.
        out: Folder of the page, tables and configs; an earlier one is replaced.
        trials: Folder of finished trials, which studies share; ``trials`` beside ``out`` if absent.
        jobs: Trials at a time; as many as the processors allow if absent.
        threads: Threads per trial.
        observe: Called after every trial with the progress of the study.

    Returns:
        The arms, their effects with confidence intervals, and the recommended features.

    Raises:
        UserError: The study names what is not there, an arm would have no feature, a metric lacks its column, or the
            base model failed.

    Example:
        >>> config = rs.load_config("experiment.yaml", ["ablation={seeds: 1, leave_one_out: [price]}"])
        >>> findings = rs.ablate(config, rs.Dataset.open(Path("dataset")), "study", jobs=2)
        >>> findings.effects.select("arm", "effect", "verdict").columns
        ['arm', 'effect', 'verdict']
    """
    out = Path(out)
    with processes(jobs=jobs, threads=threads) as engine:
        study = open_study(config, dataset, out, engine, trials=trials)
        study.run(observe)
    findings = find(study)
    write_study(study, findings, out)
    return findings
