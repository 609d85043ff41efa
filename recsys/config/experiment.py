"""The blocks of an experiment: data, model, training, sparsity, export, studies."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from data_pipelines import extensions
from data_pipelines.config.base import Config, extensions_meta
from data_pipelines.dataset.dataset import Dataset
from data_pipelines.errors import UserError
from data_pipelines.features.config import DataConfig
from data_pipelines.locations import Location
from data_pipelines.redaction import REFERENCE, redact
from models.layers.losses import AnyLoss, PointwiseConfig
from models.ranker import RankerConfig
from models.sharding.sharding import TableOptimizerConfig
from models.sparsity.config import SparsityConfig, shape_model
from recsys.config.daily import DailyConfig
from recsys.config.off_policy import OffPolicyConfig
from recsys.config.study import StudyConfig
from recsys.config.tune import TuneConfig
from recsys.config.validation import parse_config
from recsys.config.yaml_files import override, read_yaml
from recsys.metrics.registry import main_metric
from serving.config import ExportConfig
from serving.formula import SCORE, Formula, FormulaError

DenseOptimizer = Literal["adamw", "adam", "adagrad", "sgd"]
ScheduleKind = Literal["constant", "cosine", "linear"]
_LOCATIONS = ("data.log", "data.joins.table", "train.start", "train.mlflow")
_ARMS = ("ablation", "tune")
"""Blocks that hold values for other keys, which are checked when they are set there."""


class DenseOptimizerConfig(Config):
    """Optimizer of everything that is not an embedding table."""

    optimizer: DenseOptimizer = "adamw"
    learning_rate: float = Field(default=0.001, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    clip_norm: float | None = Field(default=None, gt=0, description="Largest global norm of the dense gradient.")


class ScheduleConfig(Config):
    """Factor on both learning rates: linear warm-up, then constant, or falling to zero at the last step."""

    kind: ScheduleKind = "constant"
    warmup_steps: int = Field(default=0, ge=0)


class TrainConfig(Config):
    """How a ranker is trained."""

    features: list[str] | None = Field(
        default=None, min_length=1, description="Features that the ranker reads; all of data.features if absent."
    )
    start: Location = Field(
        default="random",
        min_length=1,
        description="Initial weights. `random`; `linear`: the wide part starts as a linear or logistic regression, "
        "which is then the first model that is evaluated on the valid split; `svd`: tables start as the truncated SVD "
        "of the bag matrix; or the folder or address of a run, to continue from its final weights, on its data set or "
        "one that extends it (warm start).",
    )
    unknown: dict[str, Annotated[float, Field(gt=0, lt=1)]] = Field(
        default={},
        description="By sparse feature: the share of its ids that training reads as unknown, so that OOV rows learn to "
        "represent unseen values.",
    )
    epochs: int = Field(default=3, ge=1)
    batch_size: int = Field(default=4096, ge=1, description="Rows per step per rank (the local batch size).")
    eval_batch_size: int = Field(default=16384, ge=1)
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Where training runs; `auto` is the GPU if Torch sees one, otherwise the CPU."
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="fp32",
        description="Precision of the dense part's products; `auto` is bf16 if the device computes it in hardware, "
        "otherwise fp32. Tables, losses and the router are float32.",
    )
    cuda_graphs: bool = Field(
        default=True,
        description="On one GPU, record the kernels of the dense part once and replay them for full batches. No effect "
        "with levers, several ranks, losses that compare rows, and float32 experts.",
    )
    tf32: bool = Field(default=True, description="On a GPU, compute fp32 products with TF32's 10-bit mantissa.")
    tables: TableOptimizerConfig = TableOptimizerConfig()
    dense: DenseOptimizerConfig = DenseOptimizerConfig()
    loss: AnyLoss = PointwiseConfig()
    weights: bool = Field(
        default=True,
        description="Whether rows count by their weights in training (`data.weight`, `row_weight`, "
        "`sampling.keep_negatives`); if not, all count the same. Metrics and calibration use them in any case.",
    )
    schedule: ScheduleConfig = ScheduleConfig()
    ema: float | None = Field(
        default=None, gt=0, lt=1, description="Decay of the averaged weights that are evaluated and kept."
    )
    monitor: dict[str, float] | None = Field(
        default=None,
        min_length=1,
        description="Early stopping and searches maximise this weighted sum of metrics of the valid split. A key is a "
        "metric (its mean over the tasks that have it), `<task>/<metric>`, or `<entry>/<metric>` for what `evaluate` "
        "measures besides, such as `score/list_ndcg@10`, `score/click/auc` and `buy:conditional/auc`; metrics of which "
        "lower values are better take a negative weight. Absent: the main metric of the first task, which is `auc: 1` "
        "for a binary task, `deviance: -1` for a count or a duration, and `rmse: -1` for a regression or ordered "
        "levels.",
    )
    patience: int = Field(default=2, ge=1, description="Stop after this many evaluations in a row without improvement.")
    evaluate_every: int | None = Field(
        default=None, ge=1, description="Steps between evaluations; each epoch's end if absent."
    )
    checkpoint_every: int = Field(default=1000, ge=1, description="Steps between checkpoints.")
    checkpoint_aside: bool | None = Field(
        default=None,
        description="Write checkpoints while training continues, from a copy of model and optimizer in memory. If "
        "absent, a training on a GPU does so.",
    )
    keep_checkpoints: int = Field(default=2, ge=1)
    loader_threads: int = Field(default=1, ge=1)
    mix_shards: int | None = Field(
        default=None,
        ge=1,
        description="Shuffle rows among so many files of the train split at a time, of about a million rows each, "
        "instead of among all. A data set at an address is then not fetched as a whole: each rank fetches the files "
        "that it reads.",
    )
    mlflow: Location | None = Field(default=None, description="Tracking URI of MLflow, a folder or a server.")


class ExperimentConfig(Config):
    """Everything about an experiment except the log itself.

    Example:
        >>> data = {"log": "clicks.csv", "tasks": {"clicked": {"column": "clicked"}}}
        >>> data["features"] = {"reader": {"kind": "id"}}
        >>> rs.ExperimentConfig(data=data).train.epochs
        3
    """

    extensions: tuple[str, ...] = Field(
        default=(),
        description="Modules to import first, such as `my_package.parts`: they register feature kinds, file formats, "
        "interactions, poolings, losses, levers and metrics of your own.",
    )
    name: str = "experiment"
    seed: int = Field(default=0, ge=0)
    score: str | None = Field(
        default=None,
        max_length=500,
        description="A formula of tasks by which rows are ranked, such as `click * value`: names of tasks, numbers, "
        "`+ - * / **`, `min()`, `max()`, `log()` and `exp()`. Artifacts add it to scores as `score`.",
    )
    data: DataConfig
    model: RankerConfig = RankerConfig()
    train: TrainConfig = TrainConfig()
    sparsity: SparsityConfig = SparsityConfig()
    export: ExportConfig = ExportConfig()
    ablation: StudyConfig = StudyConfig()
    tune: TuneConfig = TuneConfig()
    daily: DailyConfig = DailyConfig()
    off_policy: OffPolicyConfig | None = Field(
        default=None, description="What `recsys evaluate --off-policy` needs to know about the log."
    )

    @model_validator(mode="before")
    @classmethod
    def _shape_model(cls, content: Any) -> Any:
        """Levers that need a certain shape of the ranker set it in the ``model`` block."""
        if not isinstance(content, dict):
            return content
        for key, name in _references(content):
            raise ValueError(
                f"{key} holds ${{{name}}}, and environment variables are read in {', '.join(_LOCATIONS)} only: "
                "write the value."
            )
        return shape_model(content)

    @field_validator("extensions")
    @classmethod
    def _imported(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        """Stored configs are validated too, so that nothing is imported here."""
        for name in extensions.missing(names):
            raise ValueError(f"the experiment {extensions.needs(name)}")
        return names

    @model_validator(mode="after")
    def _has_a_formula(self) -> "ExperimentConfig":
        try:
            formula = self.formula
        except FormulaError as error:
            raise ValueError(f"score: {error}") from None
        if formula is not None and SCORE in self.data.tasks:
            raise ValueError(f"score: the task `{SCORE}` has the name of the column of the formula: rename the task")
        return self

    @property
    def formula(self) -> Formula | None:
        """The formula by which rows are ranked, if there is one."""
        return None if self.score is None else Formula.parse(self.score, self.data.tasks)

    @model_validator(mode="after")
    def _has_lists(self) -> "ExperimentConfig":
        if self.train.loss.needs_lists and self.data.group is None and self.data.drawing is None:
            raise ValueError(
                f"train.loss.kind {self.train.loss.kind} compares the rows of a list: set data.group to the columns "
                "that rows shown together share, let data.sampling draw negatives, or set the kind to pointwise."
            )
        kinds = self.train.loss.tasks
        if kinds and not any(task.kind in kinds for task in self.data.tasks.values()):
            raise ValueError(
                f"train.loss.kind {self.train.loss.kind} is for {' and '.join(kinds)} tasks, and data.tasks has none."
            )
        return self

    def extensions_meta(self) -> dict[str, Any]:
        """What the manifest of a run records of extensions: those in use and those under ``extensions``."""
        used = extensions_meta(self).get(extensions.META, {}) | extensions.versions(self.extensions)
        return {extensions.META: used} if used else {}

    @model_validator(mode="after")
    def _places_are_in_lists(self) -> "ExperimentConfig":
        if self.off_policy is not None and self.off_policy.position is not None and self.data.group is None:
            raise ValueError(
                "off_policy.position needs lists: set data.group to the columns that the rows of a list share."
            )
        return self

    @model_validator(mode="after")
    def _no_credentials(self) -> "ExperimentConfig":
        """Locations that are read again from saved configs must not hold credentials."""
        places = {"train.start": self.train.start}
        places |= {f"data.joins.{at}.table": join.table for at, join in enumerate(self.data.joins)}
        for key, place in places.items():
            if redact(place) != place:
                raise ValueError(
                    f"{key} is {redact(place)} and holds a credential, which every data set and artifact would hold "
                    "too: write ${NAME} in its place and set that environment variable."
                )
        return self


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Read an experiment's YAML, apply ``KEY=VALUE`` overrides, and import its ``extensions``.

    This is for a config that the user names. A config that is stored in a run is read with :func:`stored_config`, which
    imports nothing.

    ``${NAME}`` in ``data.log``, ``data.joins``, ``train.start`` and ``train.mlflow`` is not replaced here: it is read
    from the environment when the location is used, so that no copy of the config holds its value.

    Raises:
        UserError: No such file, not YAML, ``${NAME}`` in another key, an unknown key (the nearest known one is named),
            a value out of range, an extension that cannot be imported, or a password in an address that is read again
            from saved configs.

    Example:
        >>> rs.load_config("experiment.yaml", ["train.batch_size=32"]).train.batch_size
        32
    """
    content = override(read_yaml(Path(path)), overrides)
    import_extensions(content, str(path))
    return parse_config(ExperimentConfig, content, source=str(path))


def stored_config(path: Path, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """As :func:`load_config`, of a config that a run holds: its extensions must have been imported already.

    Raises:
        UserError: As :func:`load_config`, or an extension has not been imported.
    """
    return parse_config(ExperimentConfig, override(read_yaml(path), overrides), source=str(path))


def import_extensions(content: Mapping[str, Any], source: str) -> None:
    """Import what the key ``extensions`` of a config names, before the config is validated.

    Raises:
        UserError: A module cannot be imported.
    """
    names = content.get("extensions")
    if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
        extensions.load(names, f"{source}: extensions")


def resolve_monitor(config: ExperimentConfig) -> ExperimentConfig:
    """``config`` with the default of ``train.monitor`` if it is absent."""
    if config.train.monitor is not None:
        return config
    metric = main_metric(next(iter(config.data.tasks.values())).kind)
    weight = -1.0 if metric.better == "lower" else 1.0
    return config.model_copy(update={"train": config.train.model_copy(update={"monitor": {metric.name: weight}})})


def chosen_features(config: ExperimentConfig, dataset: Dataset) -> list[str]:
    """The features of ``dataset`` that the ranker reads: ``train.features``, or all that ``data`` names.

    With fewer features, fewer columns are read; the data set need not be prepared again.

    Raises:
        UserError: The data set was prepared with other keys of ``data``, or ``train.features`` names an unknown
        feature.
    """
    data = config.data
    for name, feature in data.features.items():
        if dataset.config.features.get(name) != feature:
            known = "differs from what" if name in dataset.config.features else "is not among the features"
            raise UserError(f"data.features.{name} {known} {dataset.path} was prepared with: prepare the data again.")
    for key in ("tasks", "split", "time", "user", "weight", "sampling", "group"):
        if getattr(data, key) != getattr(dataset.config, key):
            raise UserError(f"data.{key} differs from what {dataset.path} was prepared with: prepare the data again.")
    chosen = list(data.inputs) if config.train.features is None else config.train.features
    for name in chosen:
        if name not in data.inputs:
            raise UserError(f"train.features: there is no feature {name!r}; there are {', '.join(data.inputs)}.")
    return chosen


def _references(value: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Keys with ``${NAME}`` in which environment variables are not read, and the names of the variables."""
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from _references(entry, (*keys, str(key)))
    elif isinstance(value, list):
        for entry in value:
            yield from _references(entry, keys)
    elif isinstance(value, str) and ".".join(keys) not in _LOCATIONS and keys[0] not in _ARMS:
        yield from ((".".join(keys), name) for name in REFERENCE.findall(value))
