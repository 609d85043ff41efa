"""The base class of every block of a configuration."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Base of every block of a configuration: immutable, and unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)
