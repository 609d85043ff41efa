"""The options and the result of a batch job."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class JobOptions(BaseModel):
    """The options of a job. Jobs with different options are different jobs.

    Attributes:
        bad_rows: What to do with rows that hold an invalid value (an unparsable timestamp, a negative weight):
            ``quarantine`` writes them to ``quarantine/*.parquet`` with the reason; ``score`` reads the value as null.
        logits: Add a column ``<task>:logit`` per task.
        candidates: A table of candidates that fits in memory. Each row of the input is then a user, who is scored with
            every candidate. Invalid values are null.
        top_k: Keep only so many candidates per user, those with the highest ``score``; without a formula, with the
            highest prediction of the first task.
        warn_unknown: Share of unknown values of a feature, or of nulls of a joined column, from which the job warns.
        max_unknown: Share above which the job fails when all parts are scored. The same job with a larger limit then
            succeeds at once: these two limits do not make a different job.

    Example:
        >>> rs.JobOptions(bad_rows="score").top_k is None
        True
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    bad_rows: Literal["quarantine", "score"] = "quarantine"
    logits: bool = False
    candidates: str | None = Field(default=None, max_length=4096)
    top_k: int | None = Field(default=None, ge=1)
    warn_unknown: float = Field(default=0.5, ge=0, le=1)
    max_unknown: float = Field(default=0.99, ge=0, le=1)

    @model_validator(mode="after")
    def _consistent(self) -> "JobOptions":
        if self.top_k is not None and self.candidates is None:
            raise ValueError("top_k needs candidates to choose from")
        if self.logits and self.candidates is not None:
            raise ValueError("logits are written for rows, not for candidates")
        return self


@dataclass(frozen=True)
class JobResult:
    """The result of a job.

    Attributes:
        rows_in: Rows of the whole job. ``rows_out``, ``quarantined`` and ``parts`` are of the whole job too.
        unknown: Share of the values of each feature that training never saw.
        nulls: Share of null rows, by raw column that was read, columns of side tables included.
        rescored: Parts that an earlier attempt had finished and this one scored again, because their files or their
            entries in the journal were damaged.
        rows_per_s: Rows per second that this process scored; ``None`` if it scored none.
        device: Where the job is scored, and on a GPU in which precision the dense part is, such as ``cuda (bf16)``.
    """

    output: Path
    rows_in: int
    rows_out: int
    quarantined: int
    parts: int
    rescored: int
    rows_per_s: float | None
    device: str
    unknown: dict[str, float]
    nulls: dict[str, float]
