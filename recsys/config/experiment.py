"""An experiment as one YAML: data, model, training, sparsity, export; refused as a whole when a key is wrong."""

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from data_pipelines.config.base import Family
from data_pipelines.dataset.dataset import Dataset
from data_pipelines.errors import UserError
from data_pipelines.features.config import DataConfig
from models.ranker import RankerConfig
from models.sharding.sharding import TableOptimizerConfig
from models.sparsity.config import SparsityConfig, shape_model
from recsys.config.study import StudyConfig
from recsys.config.tune import TuneConfig
from serving.config import ExportConfig

DenseOptimizer = Literal["adamw", "adam", "adagrad", "sgd"]
ScheduleKind = Literal["constant", "cosine", "linear"]

_Model = TypeVar("_Model", bound=BaseModel)
_CONTAINERS = (dict, list, tuple)
_ENVIRONMENT = re.compile(r"\$\{(\w+)\}")


class _Loader(yaml.SafeLoader):
    """YAML in which only ``true`` and ``false`` are booleans, as in YAML 1.2: ``on`` is a key of a join.

    A key that stands twice is refused: PyYAML would silently keep the last.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            line = key.start_mark.line + 1
            if key.value in lines:
                raise _DuplicateKey(f"the key {key.value!r} stands in lines {lines[key.value]} and {line}")
            lines[key.value] = line
        return node


class _DuplicateKey(yaml.YAMLError):
    """Two entries of one mapping have the same key."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile("^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DenseOptimizerConfig(_Config):
    """Optimizer of everything that is not an embedding table."""

    optimizer: DenseOptimizer = "adamw"
    learning_rate: float = Field(default=0.001, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    clip_norm: float | None = Field(default=None, gt=0, description="Largest global norm of the dense gradient.")


class ScheduleConfig(_Config):
    """Factor on both learning rates: linear warm-up, then constant, or falling to zero at the last step."""

    kind: ScheduleKind = "constant"
    warmup_steps: int = Field(default=0, ge=0)


class TrainConfig(_Config):
    """How a ranker is trained."""

    features: list[str] | None = Field(
        default=None, min_length=1, description="Features that the ranker reads; all of data.features where absent."
    )
    start: str = Field(
        default="random",
        min_length=1,
        description="Where weights start: at `random`; tables at the truncated SVD of the bag matrix (`svd`); or all "
        "where the run of this folder or address ended, on its data set or one that extends it.",
    )
    unknown: dict[str, Annotated[float, Field(gt=0, lt=1)]] = Field(
        default={},
        description="By sparse feature: the share of its ids that training reads as unknown, so that OOV rows learn to "
        "speak for values that training never saw.",
    )
    epochs: int = Field(default=3, ge=1)
    batch_size: int = Field(default=4096, ge=1, description="Rows a step and rank.")
    eval_batch_size: int = Field(default=16384, ge=1)
    precision: Literal["fp32", "bf16"] = "fp32"
    tables: TableOptimizerConfig = TableOptimizerConfig()
    dense: DenseOptimizerConfig = DenseOptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    ema: float | None = Field(
        default=None, gt=0, lt=1, description="Decay of the averaged weights that are evaluated and kept."
    )
    monitor: dict[str, float] = Field(
        default={"auc": 1.0},
        min_length=1,
        description="Early stop by this weighted sum of valid metrics, larger is better.",
    )
    patience: int = Field(default=2, ge=1, description="Stop after so many evaluations without a better one.")
    evaluate_every: int | None = Field(
        default=None, ge=1, description="Steps between evaluations; each epoch's end if absent."
    )
    checkpoint_every: int = Field(default=1000, ge=1, description="Steps between checkpoints.")
    checkpoint_aside: bool = Field(
        default=False,
        description="Write checkpoints while training goes on, from a copy of model and optimizer in memory.",
    )
    keep_checkpoints: int = Field(default=2, ge=1)
    loader_threads: int = Field(default=1, ge=1)
    mlflow: str | None = Field(default=None, description="Tracking URI of MLflow, a folder or a server.")


class ExperimentConfig(_Config):
    """Everything that an experiment is, beside the log itself."""

    name: str = "experiment"
    seed: int = Field(default=0, ge=0)
    data: DataConfig
    model: RankerConfig = RankerConfig()
    train: TrainConfig = TrainConfig()
    sparsity: SparsityConfig = SparsityConfig()
    export: ExportConfig = ExportConfig()
    ablation: StudyConfig = StudyConfig()
    tune: TuneConfig = TuneConfig()

    @model_validator(mode="before")
    @classmethod
    def _shape_model(cls, content: Any) -> Any:
        """Levers that ask something of the ranker's shape write it into the ``model`` block."""
        return shape_model(content) if isinstance(content, dict) else content


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Read an experiment's YAML, expand ``${NAME}`` from the environment, and apply ``KEY=VALUE`` overrides.

    Raises:
        UserError: No such file, not YAML, an unset environment variable, an unknown key (the nearest known one is
            named), or a value out of range.
    """
    return parse_config(ExperimentConfig, override(read_yaml(Path(path)), overrides), source=str(path))


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, with ``${NAME}`` expanded from the environment."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give the path of a config.") from None
    except _DuplicateKey as error:
        raise UserError(f"{path}: {error}: keep one of them.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is not valid YAML: {reason}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold keys such as data, model and train.")
    return {key: _expand(value, path) for key, value in content.items()}


def override(content: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of ``content`` with each ``a.b.c=VALUE`` set; values are read as YAML."""
    result = dict(content)
    for assignment in overrides:
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise UserError(f"{assignment!r} is not KEY=VALUE: write for example train.batch_size=4096.")
        try:
            value = yaml.load(text, _Loader)
        except yaml.YAMLError:
            raise UserError(f"the value of {assignment!r} is not valid YAML: put it in quotes.") from None
        _set(result, key.split("."), value)
    return result


def parse_config(model: type[_Model], content: Mapping[str, Any], *, source: str) -> _Model:
    """Validate ``content``; every fault becomes one sentence that names the key.

    Raises:
        UserError: An unknown key, a missing one, or a value that does not fit.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{source}: {_explain(model, error)}") from None


def chosen_features(config: ExperimentConfig, dataset: Dataset) -> list[str]:
    """The features of ``dataset`` that the ranker reads: ``train.features``, or all that ``data`` names.

    Fewer features read fewer columns; nothing is prepared again.

    Raises:
        UserError: ``data`` asks what the data set was not prepared with, or ``train.features`` names what is not there.
    """
    data = config.data
    for name, feature in data.features.items():
        if dataset.config.features.get(name) != feature:
            known = "differs from what" if name in dataset.config.features else "is not among the features"
            raise UserError(f"data.features.{name} {known} {dataset.path} was prepared with: prepare the data again.")
    for key in ("tasks", "split", "time", "user"):
        if getattr(data, key) != getattr(dataset.config, key):
            raise UserError(f"data.{key} differs from what {dataset.path} was prepared with: prepare the data again.")
    chosen = list(data.inputs) if config.train.features is None else config.train.features
    for name in chosen:
        if name not in data.inputs:
            raise UserError(f"train.features: there is no feature {name!r}; there are {', '.join(data.inputs)}.")
    return chosen


def to_yaml(config: BaseModel) -> str:
    """The resolved config: every key with its value, readable by :func:`load_config`."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _expand(value: Any, path: Path) -> Any:
    if isinstance(value, dict):
        return {key: _expand(entry, path) for key, entry in value.items()}
    if isinstance(value, list):
        return [_expand(entry, path) for entry in value]
    if not isinstance(value, str):
        return value

    def variable(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise UserError(f"{path}: {value!r} needs the environment variable {match[1]}, which is not set: set it.")
        return os.environ[match[1]]

    return _ENVIRONMENT.sub(variable, value)


def _set(content: dict[str, Any], keys: list[str], value: Any) -> None:
    for position, key in enumerate(keys[:-1]):
        inner = content.get(key)
        if inner is not None and not isinstance(inner, dict):
            raise UserError(
                f"{'.'.join(keys)} cannot be set: {'.'.join(keys[: position + 1])} holds {inner!r}, not keys."
            )
        content[key] = dict(inner or {})
        content = content[key]
    content[keys[-1]] = value


def _explain(model: type[BaseModel], error: ValidationError) -> str:
    """One sentence on the first fault of ``error``."""
    fault = error.errors()[0]
    keys, known = _locate(model, fault["loc"])
    where = ".".join(keys) or "the config"
    if fault["type"] == "extra_forbidden":
        nearest = difflib.get_close_matches(keys[-1], known, n=1, cutoff=0.0)
        others = f" (known here: {', '.join(known)})" if known else ""
        return (
            f"unknown key {where}: did you mean {nearest[0]}?{others}"
            if nearest
            else f"unknown key {where}: remove it."
        )
    if fault["type"] == "missing":
        return f"key {where} is missing: add it."
    if fault["type"] == "union_tag_not_found":
        return f"{where} needs the key kind: set {where}.kind too."
    reason = fault["msg"].removeprefix("Value error, ")
    if fault["type"] in {"value_error", "assertion_error"}:
        return f"{where}: {reason}"
    return f"{where} is {fault['input']!r}: {reason[0].lower()}{reason[1:]}."


def _locate(model: type[BaseModel], location: tuple[int | str, ...]) -> tuple[list[str], list[str]]:
    """The keys of pydantic's ``location`` without its union tags, and the known keys beside the last one."""
    candidates: list[Any] = [model]
    keys: list[str] = []
    known: list[str] = []
    for part in location:
        models = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        values = [get_args(c)[1 if get_origin(c) is dict else 0] for c in candidates if get_origin(c) in _CONTAINERS]
        tagged = [m for m in models if part in (m.__name__, *_tags(m))]
        fields = [m.model_fields[part].annotation for m in models if part in m.model_fields]
        known = sorted({name for m in models for name in m.model_fields})
        if tagged and not fields:
            candidates = tagged
            continue
        keys.append(str(part))
        candidates = [kind for annotation in fields for kind in _kinds(annotation)]
        candidates += [kind for annotation in values for kind in _kinds(annotation)]
    return keys, known


def _tags(model: type[BaseModel]) -> tuple[Any, ...]:
    kind = model.model_fields.get("kind")
    return get_args(kind.annotation) if kind is not None else ()


def _kinds(annotation: Any) -> list[Any]:
    """The alternatives of an annotation: unions, ``Annotated`` and families of kinds taken apart."""
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    if get_origin(annotation) in {Union, UnionType}:
        return [kind for argument in get_args(annotation) for kind in _kinds(argument)]
    if isinstance(annotation, type) and issubclass(annotation, Family):
        return list(annotation.alternatives())
    return [annotation]
