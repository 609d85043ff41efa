"""Export: from trained weights and the data set they were trained on to an artifact."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class ExportConfig(BaseModel):
    """The ``export:`` block of an experiment."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    calibrate: bool = Field(True, description="Fit probabilities of binary tasks on the validation split.")
    calibration: Literal["platt", "isotonic"] = Field("platt", description="Platt keeps the order of rows exactly.")
    sample: int = Field(100_000, ge=1, description="Validation rows for calibration and for the drift reference.")
