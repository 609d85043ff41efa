"""What to learn, and from which rows: tasks, weights, splits and negative sampling."""

from datetime import date
from typing import Any, Literal

import numpy as np
from pydantic import Field, ValidationInfo, field_validator, model_validator

from data_pipelines.config.base import Config


class RowWeight(Config):
    """How much each row counts, in losses and in metrics: `weight: COLUMN`, or the inverse of a propensity.

    A row of weight 2 counts like two rows of weight 1.
    """

    column: str | None = Field(default=None, description="The column that holds the weights: numbers from 0.")
    inverse: str | None = Field(
        default=None,
        description="The column that holds propensities: the chance, above 0 and up to 1, with which the row came to "
        "be shown. Its weight is 1 / propensity (inverse propensity scoring).",
    )
    clip: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Smaller propensities are raised to this value: a smaller variance, at the price of a bias.",
    )

    @model_validator(mode="before")
    @classmethod
    def _of_column(cls, value: Any) -> Any:
        return {"column": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_source(self) -> "RowWeight":
        if (self.column is None) == (self.inverse is None):
            raise ValueError(
                "a weight is either the name of a column, or has the key `inverse`: a column of propensities"
            )
        if self.clip and self.inverse is None:
            raise ValueError("`clip` is for propensities: it needs the key `inverse`")
        return self

    @property
    def read_column(self) -> str:
        """The column that is read."""
        column = self.column if self.inverse is None else self.inverse
        assert column is not None
        return column


class Task(Config):
    """A label to predict. A row without a label (null) does not count for the task.

    Binary labels are 0 or 1; ``at_least`` and ``positive`` turn other labels into these.
    """

    column: str = Field(description="The column that holds the label.")
    kind: Literal["binary", "regression", "count", "duration", "ordinal"] = Field(
        default="binary",
        description="What the label is: 0 or 1, any number, a count from 0, or an amount from 0 such as seconds "
        "watched, of which the expected value is learned by weighted logistic regression. `ordinal`: one of `levels`, "
        "such as stars, by a cumulative-link model.",
    )
    levels: tuple[float, ...] = Field(
        default=(),
        description="Of an ordinal label: its levels in ascending order. A label counts as the highest level that is "
        "not above it, so `[0, 10, 60]` also divides seconds into levels. Rows below the first level are refused.",
    )
    at_least: float | None = Field(
        default=None, description="Numbers from this value on count as 1, smaller ones as 0."
    )
    positive: tuple[str, ...] = Field(
        default=(),
        description="The values that count as 1, as text: `[yes]`, or `[cart, purchase]` for a column of events. Quote "
        "words that YAML reads as booleans.",
    )
    weight: float = Field(default=1.0, ge=0, description="Weight of the task's loss.")
    row_weight: RowWeight | None = Field(
        default=None, description="How much each row counts for this task; `data.weight` where absent."
    )
    label_delay: float = Field(
        default=0.0,
        ge=0,
        description="Seconds from a row until its label is known. Statistics of the task, and histories whose `where` "
        "reads its column, count a row only from then on.",
    )
    label_window: float = Field(
        default=0.0,
        ge=0,
        description="Seconds for which a label may still change: rows within this time of the log's end have no "
        "label for this task, because a 0 may yet become a 1.",
    )
    where: str | None = Field(
        default=None, description="A SQL condition: rows for which it does not hold have no label."
    )
    after: str | None = Field(
        default=None,
        description="The task without which this one never happens, as a purchase after a click. The model then learns "
        "both over all rows: the probability of this task is that of `after`, times the one given `after` (ESMM). A "
        "row that has the label 0 for `after` and none for this task has the label 0.",
    )

    @model_validator(mode="after")
    def _one_rule(self) -> "Task":
        if self.positive and (self.kind != "binary" or self.at_least is not None):
            raise ValueError("positive makes a binary label: leave at_least out, and set kind: binary")
        if self.levels and self.kind != "ordinal":
            raise ValueError(f"levels are for kind: ordinal, not for kind: {self.kind}")
        if self.kind == "ordinal":
            if len(self.levels) < 3:
                raise ValueError(
                    "kind: ordinal needs levels, at least three numbers such as [1, 2, 3, 4, 5] (two levels are a "
                    "binary task: use at_least)"
                )
            stored = np.array(self.levels, np.float32)
            if not np.isfinite(stored).all() or (np.diff(stored) <= 0).any():
                shown = ", ".join(f"{level:g}" for level in self.levels)
                raise ValueError(f"levels must be finite numbers in ascending order, and are {shown}")
            if self.at_least is not None:
                raise ValueError("at_least makes a binary label: leave it out, or set kind: binary")
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
    column: str | None = Field(
        default=None,
        description="The column that holds `train`, `valid` (or `validation`, `val`, `dev`) or `test`. If it names no "
        "valid rows, the share `valid` of the training rows is taken for them.",
    )
    seed: int = Field(default=0, description="Seed of the random split.")

    @field_validator("valid", "test", mode="before")
    @classmethod
    def _dates(cls, value: Any, info: ValidationInfo) -> Any:
        """Dates as text: YAML parses unquoted dates, and reads those of digits, such as 20140131, as numbers."""
        if isinstance(value, date):
            return value.isoformat()
        number = isinstance(value, int | float) and not isinstance(value, bool) and value > 1
        return f"{value:.0f}" if number and info.data.get("by") == "time" else value

    @model_validator(mode="after")
    def _shares(self) -> "Split":
        if self.by == "column" and self.column is None:
            raise ValueError("split by column needs the key `column`")
        if self.gap and self.by != "time":
            raise ValueError("`gap` is only for a split by time")
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

    The log gains the column ``positive``, 1 in its own rows and 0 in the negatives: the task to learn. Columns that
    describe an item must be joined from a side table.
    """

    item: str | None = Field(
        default=None,
        description="The column in which a negative differs from the row it is drawn for. By default the one key that "
        "is not the user.",
    )
    negatives: int = Field(default=4, ge=1, description="Negatives per row.")
    by: Literal["uniform", "popularity"] = Field(default="uniform", description="The distribution to draw items from.")
    exponent: float = Field(default=0.75, ge=0, description="With `popularity`: items are drawn by count ** exponent.")
    window: float | None = Field(
        default=None,
        gt=0,
        description="With `popularity`: seconds. Time is divided into periods of this length, and the negatives of a "
        "row are as popular as in the period before its own (one draw in ten: as in the whole training split). Without "
        "it, all draws are by the popularity in the training split.",
    )
    repeats: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="The share of the negatives that are drawn from what the row's user took before its time, each "
        "such item as likely as the others; the rest, and all those of a user without a past, are drawn as `by` says. "
        "They teach which of a user's own items come back.",
    )
    log_q: bool = Field(
        default=True,
        description="With `popularity` or `repeats`: learn and measure with logits minus the log of an item's chance "
        "to be drawn (log-q correction). Scores then do not depend on how negatives were drawn: they are those of "
        "uniform draws.",
    )
    exclude: Literal["basket", "past", "none"] = Field(
        default="basket",
        description="Items that are never drawn for a row, besides its own. `basket`: the other items of its basket. "
        "`past`: every item of its user in the rows of the same split or an earlier one; then a pair that occurs again "
        "is always positive, so that features of repeats leak the label. `none`: nothing else.",
    )
    basket: list[str] = Field(
        default=[],
        description="The columns that rows of one basket share, such as `[order_id]`; by default the user and the time "
        "(without a time, the user). A row with a null in one of them is a basket of its own.",
    )
    seed: int = Field(default=0, description="Seed of the draws.")
    keep_negatives: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="For a log that holds its negatives: the share of them that training keeps. Each one kept has the "
        "weight 1 / share, so that probabilities stay right; valid and test keep every row. Nothing is drawn then.",
    )

    @property
    def draws(self) -> bool:
        """Whether negatives are drawn; if not, those of the log are subsampled."""
        return self.keep_negatives is None

    @model_validator(mode="after")
    def _draws_or_thins(self) -> "Sampling":
        if self.draws and self.item is None:
            raise ValueError("`sampling` needs the key `item`: the column in which a negative differs from its row")
        fields = type(self).model_fields.items()
        drawing = {name for name, field in fields if getattr(self, name) != field.get_default()}
        drawing -= {"keep_negatives", "seed"}
        if not self.draws and drawing:
            raise ValueError(
                f"`keep_negatives` subsamples the negatives of the log and `{min(drawing)}` draws others: remove one"
            )
        return self

    @model_validator(mode="after")
    def _basket_is_excluded(self) -> "Sampling":
        if self.basket and self.exclude != "basket":
            raise ValueError(f"`basket` is only for exclude: basket, not for exclude: {self.exclude}")
        if self.window is not None and self.by != "popularity":
            raise ValueError("`window` is only for by: popularity")
        if self.repeats and self.exclude == "past":
            raise ValueError("`repeats` draws what the user took before, and exclude: past never does: remove one")
        return self

    @property
    def corrects(self) -> bool:
        """Whether logits are corrected by the chance of items to be drawn, which differs between items."""
        return self.draws and self.log_q and (self.by == "popularity" or self.repeats > 0)
