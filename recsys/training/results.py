"""The progress of a training, and its result."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, field_validator

from data_pipelines.notebook import html_table
from serving.artifact.card import SplitMetrics, Value

Stopped = Literal["patience", "epochs"]


class Result(BaseModel):
    """The result of a training.

    Attributes:
        run: Where the run is.
        steps: Total number of steps.
        best_step: The step whose weights were kept.
        stopped: By early stopping (``patience``), or after all ``epochs``.
        valid: Metrics of the final weights by task; empty without a valid split.
        value: The best monitored value; ``None`` if none was measured.
        seconds: Of this process, from start to end.
        samples_per_s: Rows trained on per second by all ranks, without evaluation and checkpoints.
        notes: Metrics that were left out of the monitor, and why.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    run: Path | str
    steps: int
    best_step: int
    stopped: Stopped
    valid: dict[str, dict[str, Value]]
    value: float | None
    seconds: float
    samples_per_s: Value
    notes: tuple[str, ...] = ()

    @field_validator("value", mode="before")
    @classmethod
    def _measured(cls, value: Any) -> Any:
        """Earlier versions wrote minus infinity if nothing was measured."""
        return None if isinstance(value, float) and not math.isfinite(value) else value

    def _repr_html_(self) -> str:
        rows = {"steps": self.steps, "best step": self.best_step, "stopped by": self.stopped}
        rates = {"seconds": self.seconds, "rows per second": self.samples_per_s}
        return html_table(f"Run {self.run}", {**rows, **rates, **{f"valid {t}": m for t, m in self.valid.items()}})

    def summary(self) -> dict[str, Any]:
        """What ``recsys train`` prints; ``valid`` as in :class:`~serving.artifact.card.SplitMetrics`."""
        printed = {
            "run": self.run,
            "steps": self.steps,
            "best_step": self.best_step,
            "stopped": self.stopped,
            "valid": SplitMetrics(tasks=self.valid).model_dump(),
            "seconds": self.seconds,
            "samples_per_s": self.samples_per_s,
        }
        return printed | ({"notes": list(self.notes)} if self.notes else {})


@dataclass
class TrainState:
    """The progress of a training: the part of a checkpoint that is not tensors or the loader's position.

    Attributes:
        best_value: The best monitored value so far; ``None`` before there is one.
        evaluations_without_improvement: Since ``best_step``; evaluations whose value is NaN do not count.
        losses: Losses of the steps since the last entry of the log.
    """

    step: int = 0
    epoch: int = 0
    best_step: int = 0
    best_value: float | None = None
    evaluations_without_improvement: int = 0
    loss_mean: float = 0.0
    losses: list[float] = field(default_factory=list)

    def state_dict(self) -> dict[str, Any]:
        """The fields, as JSON."""
        return asdict(self)

    @staticmethod
    def from_checkpoint(state: Mapping[str, Any]) -> "TrainState":
        """The state in a checkpoint's JSON, also in one that an earlier version wrote."""
        if "train_state" in state:
            return TrainState(**state["train_state"])
        earlier = dict(state["position"])
        earlier["evaluations_without_improvement"] = earlier.pop("worse")
        if not math.isfinite(earlier["best_value"]):
            earlier["best_value"] = None
        return TrainState(**earlier)
