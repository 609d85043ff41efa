"""Sparse recommenders in Python: ``import recsys as rs``.

``rs.load_config``, ``rs.prepare``, ``rs.train``, ``rs.evaluate``, ``rs.export`` and ``rs.score`` are what the verbs of
the command ``recsys`` call. Names are imported when they are first used, so ``import recsys`` takes milliseconds, and
importing changes nothing in the process (see ``rs.tune_process``).
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from data_pipelines.batch import Batch, Schema
    from data_pipelines.config.base import register
    from data_pipelines.dataset.dataset import Dataset, prepare
    from data_pipelines.dataset.loader import Loader
    from data_pipelines.dataset.matrices import to_csr
    from data_pipelines.errors import UserError
    from data_pipelines.extensions import load as load_extensions
    from data_pipelines.features.encoder import Encoder
    from data_pipelines.past.state import State
    from data_pipelines.profile.inspection import inspect_log
    from data_pipelines.runtime import tune_process
    from models.layers.interactions.cross import CrossConfig, CrossNet
    from models.moe.experts import ExpertsConfig, MixtureOfExperts
    from models.ranker import Ranker
    from models.sparsity.config import register_lever
    from models.tables.poolings import register_pooling
    from recsys.ablation.ablate import ablate
    from recsys.config.experiment import ExperimentConfig, load_config
    from recsys.doctor import guard
    from recsys.evaluation.baselines.measure import write_baselines
    from recsys.evaluation.evaluate import Evaluation, evaluate
    from recsys.exporting.export import export_run as export
    from recsys.exporting.export import verify_artifact
    from recsys.metrics.metric import Metric
    from recsys.metrics.registry import register as register_metric
    from recsys.reports.report import write_report
    from recsys.runs.checkpoints import load_weights
    from recsys.studies.tuning import tune
    from recsys.training.train import train
    from recsys.training.trainer import Trainer
    from serving.artifact.artifact import Artifact
    from serving.batch.batch_job import run_job
    from serving.batch.options import JobOptions
    from serving.batch.score import score
    from serving.batch.scorer import Scorer
    from serving.mlflow_model import mlflow_model

_PLACES = {
    "Artifact": "serving.artifact.artifact",
    "Batch": "data_pipelines.batch",
    "CrossConfig": "models.layers.interactions.cross",
    "CrossNet": "models.layers.interactions.cross",
    "Dataset": "data_pipelines.dataset.dataset",
    "Encoder": "data_pipelines.features.encoder",
    "Evaluation": "recsys.evaluation.evaluate",
    "ExperimentConfig": "recsys.config.experiment",
    "ExpertsConfig": "models.moe.experts",
    "JobOptions": "serving.batch.options",
    "Loader": "data_pipelines.dataset.loader",
    "Metric": "recsys.metrics.metric",
    "MixtureOfExperts": "models.moe.experts",
    "Ranker": "models.ranker",
    "Schema": "data_pipelines.batch",
    "Scorer": "serving.batch.scorer",
    "State": "data_pipelines.past.state",
    "Trainer": "recsys.training.trainer",
    "UserError": "data_pipelines.errors",
    "ablate": "recsys.ablation.ablate",
    "evaluate": "recsys.evaluation.evaluate",
    "export": "recsys.exporting.export:export_run",
    "guard": "recsys.doctor",
    "inspect_log": "data_pipelines.profile.inspection",
    "load_config": "recsys.config.experiment",
    "load_extensions": "data_pipelines.extensions:load",
    "load_weights": "recsys.runs.checkpoints",
    "mlflow_model": "serving.mlflow_model",
    "prepare": "data_pipelines.dataset.dataset",
    "register": "data_pipelines.config.base",
    "register_lever": "models.sparsity.config",
    "register_metric": "recsys.metrics.registry:register",
    "register_pooling": "models.tables.poolings",
    "run_job": "serving.batch.batch_job",
    "score": "serving.batch.score",
    "to_csr": "data_pipelines.dataset.matrices",
    "train": "recsys.training.train",
    "tune": "recsys.studies.tuning",
    "tune_process": "data_pipelines.runtime",
    "verify_artifact": "recsys.exporting.export",
    "write_baselines": "recsys.evaluation.baselines.measure",
    "write_report": "recsys.reports.report",
}
"""Where each public name is defined: ``module``, or ``module:name`` if it has a different name there."""

__all__ = [
    "Artifact",
    "Batch",
    "CrossConfig",
    "CrossNet",
    "Dataset",
    "Encoder",
    "Evaluation",
    "ExperimentConfig",
    "ExpertsConfig",
    "JobOptions",
    "Loader",
    "Metric",
    "MixtureOfExperts",
    "Ranker",
    "Schema",
    "Scorer",
    "State",
    "Trainer",
    "UserError",
    "__version__",
    "ablate",
    "evaluate",
    "export",
    "guard",
    "inspect_log",
    "load_config",
    "load_extensions",
    "load_weights",
    "mlflow_model",
    "prepare",
    "register",
    "register_lever",
    "register_metric",
    "register_pooling",
    "run_job",
    "score",
    "to_csr",
    "train",
    "tune",
    "tune_process",
    "verify_artifact",
    "write_baselines",
    "write_report",
]


def __getattr__(name: str) -> Any:
    place = _PLACES.get(name)
    if place is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = place.partition(":")
    value = getattr(importlib.import_module(module), attribute or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
