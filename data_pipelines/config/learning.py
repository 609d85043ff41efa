"""What to learn, and from which rows: tasks, splits and negative sampling."""

from datetime import date
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from data_pipelines.config.base import Config


class Task(Config):
    """A label to predict. A row without a label (null) does not count for the task.

    Binary labels are 0 or 1, or are made so by ``at_least`` or by ``positive``.
    """

    column: str = Field(description="The column that holds the label.")
    kind: Literal["binary", "regression", "count"] = Field(
        default="binary", description="What the label is: 0 or 1, any number, or a count from 0."
    )
    at_least: float | None = Field(default=None, description="Numbers from here on count as 1, those below as 0.")
    positive: tuple[str, ...] = Field(
        default=(),
        description="The values that count as 1, as text: `[yes]`, or `[cart, purchase]` of a column of events. Quote "
        "words that YAML takes for truth values.",
    )
    weight: float = Field(default=1.0, ge=0, description="Weight of the task's loss.")
    where: str | None = Field(
        default=None, description="A SQL condition: rows for which it does not hold have no label."
    )

    @model_validator(mode="after")
    def _one_rule(self) -> "Task":
        if self.positive and (self.kind != "binary" or self.at_least is not None):
            raise ValueError("positive makes a binary label, and needs no at_least")
        return self


class Split(Config):
    """How rows are divided into train, valid and test."""

    by: Literal["time", "random", "leave_last", "column"] = Field(
        default="time",
        description="`time`: the latest rows are test, those before them valid (ties in time by row order). `random`: "
        "by a hash of the row number. `leave_last`: the last rows of each user are test, those before them valid. "
        "`column`: a column says which.",
    )
    valid: float | str = Field(
        default=0.1,
        description="Share of the rows; by time also the date at which valid begins; by leave_last rows per user.",
    )
    test: float | str = Field(default=0.1, description="Like `valid`, for the test rows.")
    gap: float = Field(
        default=0.0,
        ge=0,
        description="Seconds before valid and before test whose rows are dropped, so that late labels cannot leak.",
    )
    column: str | None = Field(default=None, description="The column that holds `train`, `valid` or `test`.")
    seed: int = Field(default=0, description="Seed of the random split.")

    @field_validator("valid", "test", mode="before")
    @classmethod
    def _dates(cls, value: Any, info: ValidationInfo) -> Any:
        """Dates as text: YAML reads unquoted ones itself, and those of digits, such as 20140131, as numbers."""
        if isinstance(value, date):
            return value.isoformat()
        number = isinstance(value, int | float) and not isinstance(value, bool) and value > 1
        return f"{value:.0f}" if number and info.data.get("by") == "time" else value

    @model_validator(mode="after")
    def _shares(self) -> "Split":
        if self.by == "column" and self.column is None:
            raise ValueError("split by column needs the key `column`")
        if self.gap and self.by != "time":
            raise ValueError("`gap` has a meaning only in a split by time")
        if self.by == "leave_last":
            if not all(isinstance(n, int | float) and n == int(n) and n >= 0 for n in (self.valid, self.test)):
                raise ValueError("split by leave_last takes whole numbers of rows for `valid` and `test`, such as 1")
        elif self.by == "random" or (self.by == "time" and not isinstance(self.valid, str)):
            if isinstance(self.valid, str) or isinstance(self.test, str):
                raise ValueError("`valid` and `test` must both be shares, or both dates in a split by time")
            if self.valid < 0 or self.test < 0 or self.valid + self.test >= 1:
                raise ValueError("shares `valid` and `test` must be at least 0 and leave a part for training")
        elif self.by == "time" and not isinstance(self.test, str):
            raise ValueError("`valid` and `test` must both be shares, or both dates")
        return self


class Sampling(Config):
    """Negatives for logs that hold positives only, drawn from the candidates of the training split.

    The log gains the column ``positive``, 1 in its own rows and 0 in the negatives: the task to learn. What describes
    an item must be joined from a side table.
    """

    item: str = Field(
        description="The column in which a negative differs from the row it is drawn for. By default the one key that "
        "is not the user."
    )
    negatives: int = Field(default=4, ge=1, description="Negatives per row.")
    by: Literal["uniform", "popularity"] = Field(default="uniform", description="The distribution to draw items from.")
    exponent: float = Field(default=0.75, ge=0, description="With `popularity`: items are drawn by count ** exponent.")
    exclude: Literal["basket", "past", "none"] = Field(
        default="basket",
        description="What is never drawn for a row, beside its own item. `basket`: the other items of its basket. "
        "`past`: every item of its user in the rows of the same split or an earlier one; then a pair that comes again "
        "is always positive, and every feature of repeats knows the label. `none`: nothing else.",
    )
    basket: list[str] = Field(
        default=[],
        description="The columns that rows of one basket share, such as `[order_id]`; by default the user and the time "
        "(without a time, the user). A row with a null in one of them is a basket of its own.",
    )
    seed: int = Field(default=0, description="Seed of the draws.")

    @model_validator(mode="after")
    def _basket_is_excluded(self) -> "Sampling":
        if self.basket and self.exclude != "basket":
            raise ValueError(f"`basket` has a meaning only with exclude: basket, not with exclude: {self.exclude}")
        return self
