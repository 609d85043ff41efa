"""The ``daily:`` block of an experiment: when a new day, or the model of a new day, is refused."""

from pydantic import Field

from data_pipelines.config.base import Config


class DailyConfig(Config):
    """What ``recsys daily`` accepts. ``data.max_quarantined`` limits the rows of a day that cannot be read."""

    max_late: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="Share of the rows of a day that may be at or before the last row of earlier days; a day with "
        "more is refused. Late rows up to this share are used.",
    )
    max_unknown: float = Field(
        default=0.99,
        ge=0,
        le=1,
        description="Share of the values of any one feature that no earlier day had; a day with more is refused, "
        "because its values are probably spelled differently.",
    )
    max_worse: float = Field(
        default=0.0,
        ge=0,
        description="How much worse than yesterday's artifact today's may be on today's test rows, in the main metric "
        "of the first task. A difference whose 95% interval includes 0 is not counted as worse.",
    )
    max_export_loss: float = Field(
        default=0.01,
        ge=0,
        description="How much worse than the run the artifact of it may be on today's test rows, in the main metric of "
        "the first task: what pruning and quantization may cost.",
    )
    keep: int = Field(
        default=7, ge=1, description="Number of days whose files are kept. What the next day needs is kept in any case."
    )
