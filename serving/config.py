"""The ``export:`` block of an experiment."""

from typing import Literal

from pydantic import Field

from data_pipelines.config.base import Config


class ExportConfig(Config):
    """What `recsys export` does beside writing the weights."""

    packed: bool = Field(
        default=False,
        description="Entropy-code weights and vocabularies: the fewest bytes, read whole into memory, not mapped.",
    )
    calibrate: bool = Field(default=True, description="Fit probabilities of binary tasks on the validation split.")
    calibration: Literal["platt", "isotonic"] = Field(
        default="platt", description="Platt keeps the order of rows exactly."
    )
    sample: int = Field(
        default=100_000, ge=1, description="Validation rows for calibration and for the drift reference."
    )
