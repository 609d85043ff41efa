"""The ``export:`` block of an experiment."""

from typing import Literal

from pydantic import Field

from data_pipelines.config.base import Config


class ExportConfig(Config):
    """Options of `recsys export`."""

    packed: bool = Field(
        default=False,
        description="Entropy-code weights and vocabularies: fewest bytes, but read into memory instead of mapped.",
    )
    calibrate: bool = Field(default=True, description="Fit probabilities of binary tasks on the validation split.")
    calibration: Literal["platt", "isotonic"] = Field(
        default="platt", description="Platt keeps the order of rows exactly."
    )
    conditional: bool = Field(
        default=False,
        description="Scores also hold `<task>:conditional`: the probability of a task given the one of its key "
        "`after`. `<task>` is over all rows.",
    )
    sample: int = Field(
        default=100_000, ge=1, description="Validation rows for calibration and for the drift reference."
    )
