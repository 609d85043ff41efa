"""The ``ablation:`` block of an experiment: what a study removes, adds or varies, and how it judges."""

from typing import Any, Literal

from pydantic import Field, model_validator

from data_pipelines.config.base import Config
from recsys.metrics.registry import find_metric, metric_names

Part = Literal["loss", "group", "position", "weight"]
"""What a study trains without, besides features."""


class SliceConfig(Config):
    """A part of the test rows that is also judged separately.

    Either ``column`` (a key column) with how often its value occurs in the training split, or a condition in SQL over
    the key columns, the user and the time.
    """

    column: str | None = None
    seen_at_least: int | None = Field(default=None, ge=0)
    seen_at_most: int | None = Field(default=None, ge=0)
    where: str | None = None

    @model_validator(mode="after")
    def _one_rule(self) -> "SliceConfig":
        counted = self.seen_at_least is not None or self.seen_at_most is not None
        if (self.where is None) == (self.column is None) or counted != (self.column is not None):
            raise ValueError("a slice is either `where`, or `column` with `seen_at_least` or `seen_at_most`")
        return self


class StudyConfig(Config):
    """A study. Lists of features take names of features and of groups; ``features`` stands for every feature and
    ``groups`` for every group.

    The base model has all features. Every training is repeated for ``seeds`` seeds, the same in all arms, with the
    hyperparameters of the experiment unless an arm varies them.
    """

    seeds: int = Field(
        default=3, ge=1, description="Trainings per arm, each with its own seed; fewer than 3 give wide intervals."
    )
    leave_one_out: list[str] = Field(default=["features", "groups"], description="Train without each of these.")
    core: list[str] = Field(default=[], description="The features that `add_one_in` and forward selection start from.")
    add_one_in: list[str] = Field(default=[], description="Train with `core` and each of these.")
    without: list[Part] = Field(
        default=[],
        description="Train without each of these. `loss`: pointwise instead of `train.loss`. `group`: pointwise, and "
        "without `relative` features. `position`: without the features that have `serve`. `weight`: every row counts "
        "the same in training. Metrics use lists and weights in any case.",
    )
    pairs: list[str] = Field(default=[], description="Train without each pair of these: do they replace each other?")
    replace: dict[str, list[str]] = Field(
        default={},
        description="Train with each of these features of `data`, which the base leaves out, instead of the feature or "
        "group: a shorter history, other buckets.",
    )
    permute: list[str] = Field(default=[], description="Shuffle each of these among the test rows of the trained base.")
    permute_within: list[str] = Field(
        default=[], description="The same, but only among rows with equal values of correlated features."
    )
    mask: list[str] = Field(default=[], description="Set each of these to null in the test rows of the trained base.")
    mask_oov: list[str] = Field(default=[], description="Set each of these to a value that training never saw.")
    leave_out_experts: bool = Field(
        default=False,
        description="Judge the trained base without each expert of its mixture: rows take their next best choice.",
    )
    vary: dict[str, list[Any]] = Field(default={}, description="Values of config keys, one key at a time.")
    grid: dict[str, list[Any]] = Field(default={}, description="Values of config keys, in all combinations.")
    selection: Literal["none", "forward", "backward", "path"] = Field(
        default="path",
        description="Search for a small set of features: add greedily, drop greedily, or drop in order of effect.",
    )
    slices: dict[str, SliceConfig] | None = Field(default=None, description="Parts of the test rows; a few by default.")
    metrics: list[str] | None = Field(
        default=None,
        min_length=1,
        description="The metrics that arms are compared by; by default the headline metrics of the task. Arms are "
        "ranked by the main metric of the task (AUC, RMSE or Poisson deviance) if it is among them, and by the first "
        "one otherwise.",
    )
    task: str | None = Field(default=None, description="The task to judge by; the first one by default.")
    level: float = Field(default=0.95, gt=0.5, lt=1, description="Confidence level of intervals.")
    correction: Literal["holm", "benjamini_hochberg"] = Field(default="holm", description="For many arms.")
    tolerance: float = Field(
        default=0.001,
        ge=0,
        description="Differences in the ranking metric up to this size do not justify a feature.",
    )
    leak_share: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="A feature that carries more than this share of the AUC above 0.5 is suspicious.",
    )
    halving: bool = Field(
        default=False, description="After each seed, stop the worse half of the `vary` and `grid` arms."
    )
    warm_start: bool = Field(
        default=False,
        description="Also estimate `leave_one_out` by training the dense part of the base for one more epoch, and how "
        "well these estimates rank.",
    )

    @model_validator(mode="after")
    def _known(self) -> "StudyConfig":
        for name in self.metrics or ():
            if find_metric(name) is None:
                raise ValueError(f"metric `{name}` is not known: choose from {', '.join(metric_names())}")
        for key, values in {**self.vary, **self.grid}.items():
            if not values:
                raise ValueError(f"`{key}` has no values to vary")
            if key.split(".")[0] not in {"model", "train", "sparsity", "export"}:
                raise ValueError(f"`{key}` cannot be varied: only keys below model, train, sparsity and export can")
        if self.add_one_in and not self.core:
            raise ValueError("`add_one_in` needs `core`: an arm to compare with must have at least one feature")
        return self
