"""The model card: a model's metrics, sizes, and what it was made from. One schema for JSON, pages and tables."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, model_serializer, model_validator

_INTERVAL = "_interval"


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _number(value: Any) -> Any:
    return float("nan") if value is None else value


def _or_null(value: float) -> float | None:
    return value if abs(value) < float("inf") else None


Value = Annotated[float, BeforeValidator(_number), PlainSerializer(_or_null, when_used="json")]
"""A measured value; NaN if it is undefined, which JSON writes as ``null``."""


class SplitMetrics(_Record):
    """Metrics of a model on one split.

    As JSON, the metrics of the first task are top-level keys, its intervals are ``<metric>_interval``, and with
    several tasks all of them are under ``tasks``.

    Attributes:
        tasks: Metrics by task, then by name. The only task of a card that was read has the name "".
        intervals: 95% intervals by task, then by metric.
    """

    tasks: dict[str, dict[str, Value]]
    intervals: dict[str, dict[str, tuple[Value, Value]]] = {}

    @property
    def first(self) -> dict[str, Value]:
        """Metrics of the first task; empty where nothing was measured."""
        return next(iter(self.tasks.values()), {})

    @model_validator(mode="before")
    @classmethod
    def _from_json(cls, content: Any) -> Any:
        if not isinstance(content, dict) or "intervals" in content or set(content) == {"tasks"}:
            return content
        values = {name: value for name, value in content.items() if name != "tasks"}
        bounds = {name.removesuffix(_INTERVAL): values.pop(name) for name in list(values) if name.endswith(_INTERVAL)}
        tasks = content.get("tasks") or {"": values}
        return {"tasks": tasks, "intervals": {next(iter(tasks)): bounds}}

    @model_serializer(mode="wrap")
    def _to_json(self, handler: Any) -> dict[str, Any]:
        content = handler(self)
        if not content["tasks"]:
            return {}
        name, first = next(iter(content["tasks"].items()))
        bounds = {f"{metric}{_INTERVAL}": list(value) for metric, value in content["intervals"].get(name, {}).items()}
        return {**first, **bounds} | ({"tasks": content["tasks"]} if len(content["tasks"]) > 1 else {})


Kind = Literal["table", "layer", "expert", "router", "other"]


class Part(_Record):
    """One line of a size report.

    Attributes:
        part: Name of the table, layer, expert or router; ``total`` in the last line.
        numbers: Numbers of the part in the checkpoint.
        density: Share of them that the artifact keeps and that are not zero.
        checkpoint_bytes: In float32, with the rows of pruned values.
        artifact_bytes: In the artifact, without the vocabulary.
        flops_before: Multiplications and additions per row in the ranker that was trained; of experts, those of the
            chosen ones.
        flops_after: The same in the artifact's ranker. Scattered zeros do not lower it: they are multiplied too.
        activations: ``int8`` if the artifact's ranker computes the part with integer GEMMs.
    """

    part: str
    kind: Kind
    numbers: int
    density: float
    checkpoint_bytes: int
    artifact_bytes: int
    flops_before: int
    flops_after: int
    activations: Literal["int8"] | None = None


class SizeReport(_Record):
    """The bytes and FLOPs of each part of a model, before and after the levers.

    Attributes:
        parts: Every table, layer, expert and router, and the total as the last line.
    """

    parts: tuple[Part, ...] = ()

    @property
    def total(self) -> Part:
        """The last line."""
        return self.parts[-1]


class TrainingFacts(_Record):
    """What a model was made from.

    Attributes:
        fingerprints: Fingerprints of the ``run`` and of the ``dataset``.
        rows: Rows of each split.
        features: The encoded features that the ranker reads.
        config: The experiment's resolved config.
    """

    fingerprints: dict[str, str] = {}
    rows: dict[str, int] = {}
    features: list[str] = []
    config: dict[str, Any] = {}


class ModelCard(_Record):
    """The metrics, sizes and origin of an artifact.

    Attributes:
        name: Name of the experiment.
        metrics: Metrics by split, as evaluated before export.
        sparsity: The size report: bytes, density and FLOPs of every part, before and after the levers.
        training: Fingerprints of run and data set, rows, features, and the resolved config.
        versions: Versions of the packages that trained it.
    """

    name: str
    metrics: dict[str, SplitMetrics] = {}
    sparsity: SizeReport = SizeReport()
    training: TrainingFacts = TrainingFacts()
    versions: dict[str, str] = {}
