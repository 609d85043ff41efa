"""The ``tune:`` block: which keys of an experiment are searched, and how long."""

from typing import Any

from pydantic import Field, model_validator

from data_pipelines.config.base import Config


class Range(Config):
    """The values of one key: ``choices``, or numbers from ``low`` to ``high`` (integers, if both are integers)."""

    low: int | float | None = None
    high: int | float | None = None
    log: bool = Field(default=False, description="Sample on a logarithmic scale.")
    choices: list[Any] | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _one_way(self) -> "Range":
        bounded = self.low is not None and self.high is not None
        if bounded == (self.choices is not None):
            raise ValueError("give either `low` and `high`, or `choices`")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        if self.log and (self.low is None or self.low <= 0):
            raise ValueError("log needs a `low` above 0")
        return self

    def has(self, value: Any) -> bool:
        """Whether ``value`` may be suggested."""
        if self.choices is not None:
            return value in self.choices
        assert self.low is not None
        assert self.high is not None
        return isinstance(value, int | float) and self.low <= value <= self.high


class TuneConfig(Config):
    """A search by Optuna for the largest ``train.monitor`` on the valid split."""

    trials: int = Field(
        default=20, ge=1, description="Finished trials, counted over all processes that share the study."
    )
    minutes: float | None = Field(
        default=None,
        gt=0,
        description="Budget in minutes of trials. A trial is not started if, by the mean time of earlier trials, it "
        "would end later; the first trial always runs. No limit if absent.",
    )
    include_config: bool = Field(
        default=False, description="Try the values that the config itself has first; they must be in the space."
    )
    prune: bool = Field(
        default=True,
        description="Stop a trial early when its value is below the median of the other trials at the same evaluation.",
    )
    space: dict[str, Range] = Field(default={}, description="By key, such as `train.dense.learning_rate`.")
